"""Every method of the table through the command, and back through plain PEFT."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from osrm_cli.linalg.row_stream import RowStream, truncate_rank
from osrm_cli.merging.feature_moments import open_layer_data
from osrm_cli.merging.layer_data import NoLayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.methods import METHODS
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe_file import read_recipe
from osrm_cli.merging.requirements import method_option_names
from tests.run_cli import osrm

TASKS = ("mood", "pair", "score")
# AdaMerging has no scores to lower the entropy of: it merges the two classification tasks. Nearswap takes two.
ADAPTERS = {"adamerging": TASKS[:2], "nearswap": TASKS[:2]}
DENSE = [row for row in METHODS if row.space == "element" and not row.data_statistic and not row.is_task_aware]


@pytest.mark.parametrize("method", [row for row in METHODS if not row.is_task_aware], ids=lambda row: row.name)
def test_plain_peft_loads_what_the_method_made(project_copy: Path, method) -> None:
    names = ADAPTERS.get(method.name, TASKS)
    more = ["--steps", 3] if "steps" in method_option_names(method) else []
    run = osrm("merge", *(f"adapters/{n}" for n in names), "-m", method.name, *more, "--out", "made", cwd=project_copy)
    assert run.code == 0, run
    base = json.loads((project_copy / "made/adapter_config.json").read_text())["base_model_name_or_path"]
    labels = {"mood": 2, "pair": 3, "score": 1}
    for name in names:  # a warning is an error here
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels[name])
        loaded = PeftModel.from_pretrained(plain, str(project_copy / "made/tasks" / name))
        assert loaded.peft_config["default"].modules_to_save
    if method.data_statistic:
        return  # what their rules are told is compared in test_merge_data.py
    deltas = {n: m.get_delta_weight("default") for n, m in loaded.named_modules() if hasattr(m, "get_delta_weight")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project_copy)
        plan = MergePlan.of(read_recipe(project_copy / "made/merge.yaml"))
        for layer in merge_layers(plan, open_layer_data(plan), plan.layers):
            expected = layer.result.dense()
            found = deltas[f"base_model.model.{layer.name}"]
            torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", DENSE, ids=lambda row: row.name)
def test_as_model_holds_what_an_adapter_only_approaches(project_copy: Path, method) -> None:
    given = [f"adapters/{name}" for name in ADAPTERS.get(method.name, TASKS)]
    for form, out in (("model", "whole"), ("adapter", "part")):
        run = osrm("merge", *given, "-m", method.name, "--as", form, "--out", out, cwd=project_copy)
        assert run.code == 0, run
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project_copy)
        whole, part = (MergePlan.of(read_recipe(project_copy / name / "merge.yaml")) for name in ("whole", "part"))
        merges = (merge_layers(plan, NoLayerData(), plan.layers) for plan in (whole, part))
        for exact, near in zip(*merges, strict=True):
            assert isinstance(exact.result, RowStream)
            best, kept = truncate_rank(exact.result, near.result.rank)
            torch.testing.assert_close(near.result.dense(), best.dense(), atol=1e-9, rtol=1e-6)
            assert near.kept == pytest.approx(kept)


def test_nearswap_moves_the_adapter_that_is_named(project_copy: Path) -> None:
    words = ("adapters/mood", "adapters/pair", "-m", "nearswap", "--reach", 0.01)
    for name, more in (("first", []), ("named", ["--primary", "mood"]), ("other", ["--primary", "pair"])):
        assert osrm("merge", *words, *more, "--out", name, cwd=project_copy).code == 0
    assert osrm("merge", "--recipe", "other/merge.yaml", "--out", "again", cwd=project_copy).code == 0
    first, named, other, again = (
        (project_copy / name / "adapter_model.safetensors").read_bytes()
        for name in ("first", "named", "other", "again")
    )
    assert first == named != other == again
    run = osrm("merge", *words, "--primary", "score", "--out", "none", cwd=project_copy)
    assert (run.code, "no adapter is called 'score'" in run.error) == (1, True), run
    assert not (project_copy / "none").exists()
