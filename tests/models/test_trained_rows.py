"""Models in memory with rows that an adapter has trained: run as PEFT runs them, and as before afterwards."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.models.backbone import BackboneModel, with_backbone_deltas
from osrm_cli.models.classifier import LoadedModel
from osrm_cli.models.peft_model import make_peft_model, with_adapted_backbone
from osrm_cli.training.trainable_adapter import to_trainable_peft_model
from tests.token_adapters import CASES, load_base, logits, save_adapter, save_base

# A model in memory has one weight for tied layers, to which an update of the output layer alone cannot be added.
IN_MEMORY = [(case, tied) for case in CASES for tied in (False, True) if (case, tied) != ("adapted output layer", True)]


def place(folder, base, grown=0):
    """The base model with what the adapter holds beside its factors."""
    saved = MergePlan.of(MergeRecipe("task-arith", (RecipeEntry(str(folder)),))).read_saved_modules()
    memory = BackboneModel(base, load_base(base, grown), None, torch.device("cpu"))
    memory.replace_values(saved.values, saved.rows)
    return memory.model


@pytest.mark.parametrize(("case", "is_tied"), IN_MEMORY)
def test_values_are_put_into_a_model(tmp_path, case, is_tied):
    base = save_base(tmp_path / "base", is_tied)
    expected = save_adapter(tmp_path / "a", base, **CASES[case])
    adapter, model = open_adapter(tmp_path / "a"), place(tmp_path / "a", base, CASES[case].get("grown", 0))
    with with_backbone_deltas(model, lambda layer: adapter.delta(layer).dense(), list(adapter.layers)):
        torch.testing.assert_close(logits(model), expected, rtol=1e-6, atol=5e-6)


def test_another_model_is_refused(tmp_path):
    save_adapter(tmp_path / "a", save_base(tmp_path / "base"), [39])
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({name.replace("embed_tokens", "wte"): each for name, each in load_file(path).items()}, path)
    with pytest.raises(OsrmError, match=r"base has no tensor model\.wte\.weight, which an adapter stores as a whole"):
        place(tmp_path / "a", tmp_path / "base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "grown"])
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_leaves_the_model_as_it_was(tmp_path, case, is_tied, dtype):
    base = save_base(tmp_path / "base", is_tied)
    expected = save_adapter(tmp_path / "a", base, **CASES[case])
    adapter, model = open_adapter(tmp_path / "a"), load_base(base).to(dtype)
    before = logits(model)
    with with_adapted_backbone(model, make_peft_model(model, adapter), adapter) as updated:
        close = {"rtol": 1e-6, "atol": 5e-6} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
        torch.testing.assert_close(logits(updated).float(), expected, **close)
    assert torch.equal(logits(model), before)


def test_training_does_not_go_on_with_them(tmp_path):
    save_adapter(tmp_path / "a", save_base(tmp_path / "base"), [3])
    with pytest.raises(OsrmError, match=r"values of the base model's model\.embed_tokens, which osrm train cannot"):
        to_trainable_peft_model(LoadedModel(load_base(tmp_path / "base"), []), open_adapter(tmp_path / "a"), None)
