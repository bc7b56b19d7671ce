"""Whole weights as adapters of full rank, against weights that are trained by themselves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.training.full_update import find_trainable_subspaces, to_full_training_start
from osrm_cli.training.trainable_adapter import to_trainable_peft_model
from tests.run_cli import osrm

TEXTS = ["a fine day", "no", "rather more words than before"]


@pytest.fixture
def project(tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path: Path) -> Path:
    """Features of three tasks and their starts."""
    words = ("--model", tiny_model("bert"), "--data", text_tasks, "--samples", 12)
    assert osrm("collect", *words, cwd=tmp_path).code == 0
    assert osrm("init", "--each", "--rank", 2, cwd=tmp_path).code == 0
    return tmp_path


def train(project: Path, out: str, *words: object) -> Path:
    run = osrm("train", "starts/mood", "--epochs", 2, "--lr", 1e-2, "--out", out, *words, cwd=project)
    assert run.code == 0, run.stderr
    return project / out / "mood"


def test_gradient_of_b_is_that_of_the_weight(project: Path, tiny_model: Callable[[str], Path]) -> None:
    """With the identity as A: PEFT's module beside the plain model's own weight."""
    folder = tiny_model("bert")
    tokenizer = load_tokenizer(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    start = to_full_training_start(open_adapter(project / "starts/mood"), None, 0)
    model = to_trainable_peft_model(load_classifier(folder, 2, tokenizer, torch.float32, 0, 0.0), start, "A").eval()
    plain = load_classifier(folder, 2, tokenizer, torch.float32, 0, 0.0).model.eval()
    for each in (model, plain):
        each(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
    for name in start.layers:
        found = model.get_submodule(f"base_model.model.{name}").get_parameter("lora_B.default.weight").grad
        expected = plain.get_submodule(name).get_parameter("weight").grad
        assert found is not None
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("words", [(), ("--interference-penalty", 2)], ids=["alone", "with the penalty"])
def test_projected_updates_do_not_act_on_the_principal_subspace(project: Path, words: tuple[object, ...]) -> None:
    """What AdamW leaves after its steps and weight decay, against eigenvectors in float64."""
    free = open_adapter(train(project, "free", "--full"))
    projected = open_adapter(train(project, "projected", "--full", "--project", "--project-energy", 0.9, *words))
    features = FeatureSet.open(project / "features").select()
    for inputs in features.layers(per_token=False):
        _, vectors = torch.linalg.eigh(inputs.others("mood").dense().double())
        values = torch.linalg.eigvalsh(inputs.others("mood").dense().double()).flip(0)
        kept = 1 + int((values.cumsum(0) / values.sum() < 0.9).sum())
        principal = vectors.flip(1)[:, :kept]
        for layer in inputs.layers:
            assert projected.layers[layer].rank == principal.shape[0] - kept
            update, whole = (adapter.delta(layer).to(torch.float64).dense() for adapter in (projected, free))
            assert update.norm() > 1e-3
            assert (update @ principal).norm() < 1e-6 * update.norm()
            assert (whole @ principal).norm() > 0.1 * whole.norm()


def test_peft_loads_the_result_and_a_merge_takes_it(project: Path, tiny_model: Callable[[str], Path]) -> None:
    """Ranks differ from layer to layer, the scaling is one."""
    features = FeatureSet.open(project / "features").select()
    energy = next(
        share / 1000
        for share in range(600, 1000)
        if len({len(basis) for basis in find_trainable_subspaces("mood", features, share / 1000).values()}) > 1
    )
    path = train(project, "adapters", "--full", "--project", "--project-energy", energy)
    adapter = open_adapter(path)
    assert len({layer.rank for layer in adapter.layers.values()}) > 1
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=2)
    merged = PeftModel.from_pretrained(base, path).merge_and_unload().state_dict()
    before = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=2).state_dict()
    for name in adapter.layers:
        expected = before[f"{name}.weight"] + adapter.delta(name).dense()
        torch.testing.assert_close(merged[f"{name}.weight"], expected)
    assert osrm("merge", "adapters/mood", "--lambda", 0.5, cwd=project).code == 0
    assert osrm("eval", "merged", cwd=project).code == 0


def test_record_and_bytes(project: Path) -> None:
    path = train(project, "adapters", "--full", "--project")
    record = json.loads((path / "osrm.json").read_text(encoding="utf-8"))
    assert {name: record["settings"][name] for name in ("full", "freeze", "project_energy")} == {
        "full": True,
        "freeze": "A",
        "project_energy": 0.7,
    }
    again = train(project, "again", "--full", "--project")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (path, again))
    assert all(first[name].equal(second[name]) for name in first)


def test_the_command_says_how_many_directions_were_trained(project: Path) -> None:
    words = ("train", "starts/mood", "--epochs", 1, "--limit", 8, "--full")
    assert "trained in 16 directions of each layer" in osrm(*words, "--out", "all", cwd=project).stdout
    run = osrm(*words, "--project", "--out", "free", "--json", cwd=project)
    directions = json.loads(run.stdout)["adapters"]["mood"]["directions"]
    ranks = [layer.rank for layer in open_adapter(project / "free" / "mood").layers.values()]
    assert directions == {"least": min(ranks), "most": max(ranks)}


def test_free_subspace_of_everything_is_refused(project: Path) -> None:
    features = FeatureSet.open(project / "features").select()
    with pytest.raises(OsrmError, match="no direction is free of 1 of the other tasks' energy"):
        find_trainable_subspaces("mood", features, 1.0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--project",), "--project is for whole weights"),
        (("--full", "--freeze", "B"), "--full trains whole weights, which have no factor to freeze"),
    ],
)
def test_options_that_do_not_fit(project: Path, words: tuple[str, ...], line: str) -> None:
    run = osrm("train", "starts/mood", *words, cwd=project)
    assert run.code == 1
    assert line in run.stderr
