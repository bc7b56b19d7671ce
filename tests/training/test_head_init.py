"""A new head begins fitted to what the untrained model puts out."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification

from osrm_cli.errors import OsrmError
from osrm_cli.models import linear_head
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.linear_head import find_head_layer, fit_linear_head, sum_classifier_losses
from osrm_cli.models.token_batches import tokenize_for_classifier
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.task import Example, Task
from osrm_cli.training.head_init import fit_new_head
from tests.run_cli import osrm

WEIGHTS = "adapter_model.safetensors"
UNTRAINED = ("--epochs", 1, "--lr", 0, "--dtype", "float32")


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "llama", "gpt2"])
def test_head_predicts_what_a_regression_on_the_frozen_model_does(
    tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path: Path, family: str
) -> None:
    """Trained at a rate of zero, so that the head is as it was fitted; the reference takes plain PEFT and one text at
    a time.
    """
    folder = tiny_model(family)
    for line in (
        f"collect --model {folder} --data {text_tasks} --samples 5",
        "init --each --rank 2",
        "train starts/mood",
    ):
        run = osrm(*line.split(), *((*UNTRAINED, "--dropout", 0) if "train" in line else ()), cwd=tmp_path)
        assert run.code == 0, run
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = load_tokenizer(folder)
    base.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapters/mood")).eval()
    data = load_split("mood", str(text_tasks), "train")
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
    strength = linear_head.fit_linear_head(
        torch.nn.Linear(inputs.shape[1], 2, intercept), data.task, torch.cat(seen).double(), data.labels
    )
    reference = LogisticRegression(C=strength, fit_intercept=intercept, max_iter=1000).fit(scaled, data.labels)
    margins = torch.cat(logits).diff(dim=1).squeeze(1)
    expected = torch.as_tensor(reference.decision_function(scaled)).float()
    torch.testing.assert_close(margins, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("task", ["mood", "pair", "score"])
def test_fitted_head_is_better_than_a_fresh_one(project_copy: Path, task: str) -> None:
    loss = {}
    for head in ("fitted", "fresh"):
        assert osrm("train", f"starts/{task}", *UNTRAINED, "--head", head, "--out", head, cwd=project_copy).code == 0
        log = json.loads((project_copy / head / task / "training.json").read_text())
        loss[head] = log["losses"][-1][1]
    assert loss["fitted"] < loss["fresh"]


def test_head_of_a_start_is_kept(project_copy: Path) -> None:
    assert osrm("train", "adapters/mood", *UNTRAINED, "--head", "fitted", "--out", "new", cwd=project_copy).code == 0
    old, new = (load_file(project_copy / name / "mood" / WEIGHTS) for name in ("adapters", "new"))
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_class_without_an_example_leaves_the_head_fresh(project_copy: Path, tmp_path: Path) -> None:
    """One training example: nothing can be fitted, and training goes on."""
    weights = {}
    for head in ("fitted", "fresh"):
        args = ("train", "starts/mood", *UNTRAINED, "--limit", 1, "--head", head, "--out", head)
        run = osrm(*args, cwd=project_copy)
        assert run.code == 0
        weights[head] = (project_copy / head / "mood" / WEIGHTS).read_bytes()
        log = json.loads((project_copy / head / "mood" / "training.json").read_text())
        said = "has no training example: the head is initialized randomly"
        assert (said in run.stderr) == (said in log.get("head", "")) == (head == "fitted")
    assert weights["fitted"] == weights["fresh"]


def test_a_file_sorted_by_label_gives_a_fitted_head(tiny_model: Callable[[str], Path], monkeypatch) -> None:
    """The first rows are of one class: a draw from the top would leave the head random."""
    tokenizer, task = load_tokenizer(tiny_model("bert")), Task("t", ("text",), ("a", "b"), ("accuracy",))
    model = load_classifier(tiny_model("bert"), 2, tokenizer, torch.float32, 0).model
    monkeypatch.setattr("osrm_cli.training.head_init._MAX_EXAMPLES", 20)
    encodings = tokenize_for_classifier(tokenizer, [Example((f"w{i % 60}",), None) for i in range(60)], 16)
    examples = [{**encoding, "label": int(row >= 50)} for row, encoding in enumerate(encodings)]
    before = find_head_layer(model)[1].weight.clone()
    assert fit_new_head(model, tokenizer, task, examples, torch.device("cpu"), False, seed=0) is None
    assert not torch.equal(find_head_layer(model)[1].weight, before)


def test_fit_is_where_loss_and_penalty_pull_alike():
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(40, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 6) + 3
    for labels, task in (
        ([i % 2 for i in range(40)], Task("t", ("text",), ("a", "b"), ("accuracy",))),
        ([i % 3 for i in range(40)], Task("t", ("text",), ("a", "b", "c"), ("accuracy",))),
        ([float(i % 7) for i in range(40)], Task("t", ("text",), None, ("pearson",))),
    ):
        head = torch.nn.Linear(5, task.num_labels).double()
        strength = linear_head.fit_linear_head(head, task, Z, labels)
        logits = head(Z).detach().requires_grad_()
        slope = torch.autograd.grad(sum_classifier_losses(logits, task, labels), logits)[0].double()
        scale = Z.std(dim=0, correction=0)
        # On the standardised weights; on the bias nothing pulls but the loss.
        penalty = head.weight.detach() * scale * ((2 if task.regression else 1) / strength)
        penalty = penalty * (2 if task.num_labels == 2 else 1)
        pull = slope.T @ ((Z - Z.mean(dim=0)) / scale)
        assert (pull + penalty).abs().max() < 1e-3 * max(1.0, float(penalty.abs().max()))
        assert slope.sum(dim=0).abs().max() < 1e-3 * len(Z)


@pytest.mark.parametrize("signal", [0.0, 0.3, 3.0])
def test_strength_is_of_least_loss_on_examples_left_out(signal: float) -> None:
    """From noise alone a head should learn next to nothing, from plain classes much."""
    generator = torch.Generator().manual_seed(1)
    labels = [i % 3 for i in range(60)]
    Z = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    Z[:, :3] += signal * torch.nn.functional.one_hot(torch.tensor(labels))
    found = linear_head.fit_linear_head(
        torch.nn.Linear(40, 3).double(), Task("t", ("text",), ("a", "b", "c"), ("accuracy",)), Z, labels
    )
    losses = {}
    for strength in linear_head.REGULARIZATION_STRENGTHS:
        losses[strength] = 0.0
        for fold in range(5):
            # Classes alternate, so that scikit-learn's folds of like classes are twelve examples in a row.
            left = [i in range(12 * fold, 12 * fold + 12) for i in range(60)]
            kept = [not out for out in left]
            scaler = StandardScaler().fit(Z[kept].numpy())
            model = LogisticRegression(C=strength, max_iter=1000)
            model.fit(scaler.transform(Z[kept].numpy()), [y for y, here in zip(labels, kept, strict=True) if here])
            chances = model.predict_proba(scaler.transform(Z[left].numpy()))
            wanted = [y for y, here in zip(labels, left, strict=True) if here]
            losses[strength] -= sum(math.log(row[y]) for row, y in zip(chances, wanted, strict=True))
    assert found == min(losses, key=lambda strength: losses[strength])
    assert signal or found == linear_head.REGULARIZATION_STRENGTHS[0]


def test_class_with_one_example_is_fitted_at_the_least_strength() -> None:
    Z = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task("t", ("text",), ("a", "b"), ("accuracy",))
    assert (
        linear_head.fit_linear_head(torch.nn.Linear(4, 2).double(), task, Z, [1, *[0] * 8])
        == linear_head.REGULARIZATION_STRENGTHS[0]
    )


def test_infinite_outputs_fit_no_head() -> None:
    task = Task("t", ("text",), ("no", "yes"), ("accuracy",))
    inputs = torch.ones(4, 3)
    inputs[0, 0] = torch.inf
    with pytest.raises(OsrmError, match="NaN or infinity"):
        fit_linear_head(torch.nn.Linear(3, 2), task, inputs, [0, 1, 0, 1])
