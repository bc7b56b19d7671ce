"""A new head begins fitted to what the untrained model puts out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification

from osrm_cli.language import base_model, tasks
from osrm_cli.language.heads import STRENGTH
from tests.osrm import osrm

WEIGHTS = "adapter_model.safetensors"
UNTRAINED = ("--epochs", 1, "--lr", 0, "--dtype", "float32")


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "llama", "gpt2"])
def test_head_predicts_what_a_regression_on_the_frozen_model_does(
    tiny: Callable[[str], Path], words: Path, tmp_path: Path, family: str
) -> None:
    """Trained at a rate of zero, so that the head is as it was fitted; the reference takes plain PEFT and one text at
    a time.
    """
    folder = tiny(family)
    for line in (
        f"collect --model {folder} --data {words} --samples 5",
        "init --each --rank 2",
        "train starts/mood",
    ):
        run = osrm(*line.split(), *((*UNTRAINED, "--dropout", 0) if "train" in line else ()), cwd=tmp_path)
        assert run.code == 0, run
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = base_model.load_tokenizer(folder)
    base.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapters/mood")).eval()
    data = tasks.load("mood", str(words), "train")
    seen: list[torch.Tensor] = []
    *_, last = [
        module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 2
    ]
    last.register_forward_hook(lambda _module, args, _output: seen.append(args[0].reshape(-1, args[0].shape[-1])[-1:]))
    with torch.no_grad():
        logits = [model(**tokenizer(*example.texts, return_tensors="pt")).logits for example in data.examples]
    inputs = torch.cat(seen).double().numpy()
    intercept = last.bias is not None
    scaled = StandardScaler(with_mean=intercept).fit_transform(inputs)
    reference = LogisticRegression(C=STRENGTH, fit_intercept=intercept, max_iter=1000).fit(scaled, data.labels)
    margins = torch.cat(logits).diff(dim=1).squeeze(1)
    expected = torch.as_tensor(reference.decision_function(scaled)).float()
    torch.testing.assert_close(margins, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("task", ["mood", "pair", "score"])
def test_fitted_head_is_better_than_a_fresh_one(work: Path, task: str) -> None:
    loss = {}
    for head in ("fitted", "fresh"):
        assert osrm("train", f"starts/{task}", *UNTRAINED, "--head", head, "--out", head, cwd=work).code == 0
        log = json.loads((work / head / task / "training.json").read_text())
        loss[head] = log["losses"][-1][1]
    assert loss["fitted"] < loss["fresh"]


def test_head_of_a_start_is_kept(work: Path) -> None:
    assert osrm("train", "adapters/mood", *UNTRAINED, "--head", "fitted", "--out", "new", cwd=work).code == 0
    old, new = (load_file(work / name / "mood" / WEIGHTS) for name in ("adapters", "new"))
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_class_without_an_example_leaves_the_head_fresh(work: Path, tmp_path: Path) -> None:
    """One training example: nothing can be fitted, and training goes on."""
    found = {}
    for head in ("fitted", "fresh"):
        args = ("train", "starts/mood", *UNTRAINED, "--limit", 1, "--head", head, "--out", head)
        assert osrm(*args, cwd=work).code == 0
        found[head] = (work / head / "mood" / WEIGHTS).read_bytes()
    assert found["fitted"] == found["fresh"]
