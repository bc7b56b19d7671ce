import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.token_batches import collate_batch, tokenize_for_classifier
from osrm_cli.tasks.loading import draw_examples, load_split
from osrm_cli.training.interference_penalty import InterferencePenalty, penalty_energies, penalty_from_features
from tests.run_cli import osrm


def adapted(folder: Path, **options: object) -> PeftModel:
    """A classifier with random factors, as in the midst of training."""
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    chosen = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **options}
    model = get_peft_model(base, LoraConfig(**chosen))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw)
    return model


def tokens(model: PeftModel, folder: Path, texts: list[tuple[str, ...]], layers: list[str]) -> dict[str, torch.Tensor]:
    """Inputs of each layer for every real token, by a hook, one text at a time, the adapter switched off."""
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    handles = [
        model.get_submodule(f"base_model.model.{layer}").register_forward_pre_hook(
            lambda _module, args, name=layer: found[name].append(args[0][0].detach().double())
        )
        for layer in layers
    ]
    tokenizer = load_tokenizer(folder)
    with model.disable_adapter(), torch.no_grad():
        for text in texts:
            model(**tokenizer(*text, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(rows) for layer, rows in found.items()}


def naive(model: PeftModel, layer: str, x: torch.Tensor) -> tuple[float, float]:
    """Mean of ``||s B A x||^2`` and of ``||W0 x||^2``."""
    module = model.get_submodule(f"base_model.model.{layer}")
    B, A = (module.get_parameter(f"lora_{letter}.default.weight").detach().double() for letter in "BA")
    update = module.scaling["default"] * x @ A.T @ B.T
    base = x @ module.base_layer.weight.detach().double().T
    return float(update.square().sum(1).mean()), float(base.square().sum(1).mean())


@pytest.mark.parametrize(
    ("family", "targets", "statistic"),
    [
        ("bert", ["query", "value"], "second-moment"),
        ("bert", ["query", "value"], "sketch:512"),
        ("llama", ["q_proj", "v_proj"], "second-moment"),  # of two shapes
    ],
)
def test_penalty_is_the_mean_over_the_tokens_of_the_others(
    tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path: Path, family: str, targets: list[str], statistic: str
) -> None:
    """Real tokens, hooked one text at a time; each other task weighs the same, by its trace."""
    folder = tiny_model(family)
    run = osrm(
        "collect", "--model", folder, "--data", text_tasks, "--samples", 12, "--statistic", statistic,
        "--dtype", "float32", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0
    features = FeatureSet.open(tmp_path / "features").select()
    model = adapted(folder, target_modules=targets)
    layers = list(features.target_layers)
    seen = {}
    for task in ("mood", "pair", "score"):
        drawn = draw_examples(load_split(task, str(text_tasks), "train"), 12, 0)
        seen[task] = tokens(model, folder, [example.texts for example in drawn.examples], layers)
    expected, relative = [], []
    for layer in layers:
        energies = {task: naive(model, layer, x[layer]) for task, x in seen.items()}
        traces = {task: float(x[layer].square().sum(1).mean()) for task, x in seen.items()}
        out, base = (sum(energies[u][i] / traces[u] for u in ("pair", "score")) for i in (0, 1))
        expected.append(out / base)
        relative.append(out / base / (energies["mood"][0] / energies["mood"][1] + 1e-3))
    for unit, wanted in (("base", expected), ("own", relative)):
        given = {"interference_penalty": 2.0, "penalty_unit": unit}
        found = penalty_from_features(model, features, "mood", given)
        assert found.mu == 2
        assert found.interference().item() == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def test_gradient_reaches_both_factors_and_only_them(tiny_model: Callable[[str], Path]) -> None:
    model = adapted(tiny_model("bert"))
    names = [name for name, _ in model.named_modules() if name.endswith((".query", ".value"))]
    inputs = {name.removeprefix("base_model.model."): SecondMoment(torch.eye(16), factored=False) for name in names}
    InterferencePenalty(model, inputs, None, 1.0).interference().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_energies_and_their_gradients_are_a_peft_layer_s() -> None:
    """Two layers in one stack on two kinds of inputs, beside what automatic differentiation makes of forward passes."""
    torch.manual_seed(0)
    X = [[torch.randn(200, 24) @ torch.randn(24, 24) / 5 + torch.randn(24) for _ in range(2)] for _ in range(2)]
    layers, energies = [], [[], []]
    for place in range(2):
        model = nn.Sequential(nn.Linear(24, 18, bias=False))
        config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False)
        layer = get_peft_model(model, config).base_model.model[0]
        layers.append((layer.lora_A["default"].weight, layer.lora_B["default"].weight))
        for kind, rows in enumerate(X):
            moved = layer(rows[place]) - layer.base_layer(rows[place])
            energies[kind].append(moved.square().sum(dim=1).mean())
    expected = torch.stack([torch.stack(kind) for kind in energies])

    A, B = (torch.stack(factors) for factors in zip(*layers, strict=True))
    C = torch.stack([torch.stack([rows.T @ rows / len(rows) for rows in kind]) for kind in X])
    found = penalty_energies(A, 7 / 3 * B, (A @ C).detach())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)

    weights = [factor for pair in layers for factor in pair]
    ours, theirs = (torch.autograd.grad((each[0] / each[1]).log().sum(), weights) for each in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_rows_and_moment_agree(count: int, seed: int) -> None:
    """A sketch of all rows is the moment, up to the factor that cancels."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 6, generator=draw)

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(6, 4, bias=False)

    model = get_peft_model(Tiny(), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    moment = {"query": SecondMoment(rows.T @ rows, factored=False)}
    found = [
        InterferencePenalty(model, held, None, 1.0).interference()
        for held in (moment, {"query": SecondMoment(rows, factored=True)})
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_training_with_a_penalty_interferes_less_and_says_so(project_copy: Path) -> None:
    """The interference of each epoch is reported; what is left at the end is what the factors amount to."""
    args = ("train", "starts/mood", "--epochs", 3, "--lr", 0.05, "--batch-size", 8)
    left = {}
    for mu in (0.001, 30):
        assert osrm(*args, "--interference-penalty", mu, "--out", f"mu{mu}", cwd=project_copy).code == 0
        log = json.loads((project_copy / f"mu{mu}/mood/training.json").read_text())
        assert len(log["epochs"]) == 3
        assert all(row["interference"] > 0 for row in log["epochs"])
        left[mu] = log["epochs"][-1]["interference"]
        facts = json.loads((project_copy / f"mu{mu}/mood/osrm.json").read_text())
        assert facts["settings"]["interference_penalty"] == mu
        assert {entry["path"] for entry in facts["inputs"]} == {
            "starts/mood",
            "features/pair.safetensors",
            "features/score.safetensors",
        }
    assert left[30] < 0.3 * left[0.001]


def test_no_penalty_and_a_penalty_of_zero_train_the_same(project_copy: Path) -> None:
    args = ("train", "starts/mood", "--epochs", 1, "--lr", 0.05)
    assert osrm(*args, "--out", "none", cwd=project_copy).code == 0
    assert osrm(*args, "--interference-penalty", 0, "--out", "zero", cwd=project_copy).code == 0
    first, second = (project_copy / name / "mood/adapter_model.safetensors" for name in ("none", "zero"))
    assert first.read_bytes() == second.read_bytes()


def test_features_that_cannot_serve(project_copy: Path) -> None:
    args = ("train", "starts/mood", "--epochs", 1, "--interference-penalty", 1, "--out", "new")
    run = osrm(*args, "--features", "nowhere", cwd=project_copy)
    assert run.code == 1
    assert "nowhere" in run.error
    run = osrm("collect", "--samples", 5, "--statistic", "mean", "--out", "means", cwd=project_copy)
    run = osrm(*args, "--features", "means", cwd=project_copy)
    assert run.code == 1
    assert "second-moment" in run.error
    assert not (project_copy / "new").exists()


def test_another_base_model_s_features_are_refused(
    project_copy: Path, tiny_model: Callable[[str], Path], text_tasks: Path
) -> None:
    osrm(
        "collect",
        "--model",
        tiny_model("roberta"),
        "--data",
        text_tasks,
        "--samples",
        5,
        "--out",
        "other",
        cwd=project_copy,
    )
    run = osrm(
        "train", "starts/mood", "--interference-penalty", 1, "--features", "other", "--out", "new", cwd=project_copy
    )
    assert run.code == 1
    assert "base model" in run.error


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "mpnet", "t5", "llama", "gpt2"])
def test_dropout_of_zero_reaches_every_module(tiny_model: Callable[[str], Path], family: str) -> None:
    folder = tiny_model(family)
    tokenizer = load_tokenizer(folder)
    model = load_classifier(folder, 2, tokenizer, torch.float32, 0, dropout=0.0).model.train()
    encoded = tokenize_for_classifier(tokenizer, [replace(_EXAMPLE, texts=("w1 w2 w3 good",))], 16)
    batch = collate_batch(encoded, tokenizer, torch.device("cpu"))
    first, second = (model(**batch).logits for _ in range(2))
    assert torch.equal(first, second)


_EXAMPLE = load_split("mini-mood", "mini", "dev").examples[0]
