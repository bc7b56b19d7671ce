"""Every objective from every statistic; gradients; ranks by budget."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.features.loss_gradients import _halve_gradient_sample
from osrm_cli.initialization.objectives.table import OBJECTIVES
from osrm_cli.models import linear_head
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.token_batches import collate_batch, tokenize_for_classifier
from osrm_cli.tasks.loading import draw_examples, load_split
from osrm_cli.training.trainable_adapter import to_trainable_peft_model
from tests.run_cli import osrm

STATISTICS = ("mean", "samples", "second-moment", "sketch:6")
ARGS = tuple(word for name in (*STATISTICS, "gradient") for word in ("--statistic", name))
CASES = [(row, name) for row in OBJECTIVES for name in STATISTICS]


@pytest.fixture(scope="module")
def everything(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every statistic of three tasks, in ``features``."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "osrm.toml").write_text((project / "osrm.toml").read_text())
    run = osrm("collect", "--samples", 30, *ARGS, cwd=folder)
    assert run.code == 0, run
    return folder


@pytest.mark.parametrize(("row", "name"), CASES, ids=[f"{row.name} from {name}" for row, name in CASES])
def test_every_objective_from_every_statistic(everything: Path, tmp_path: Path, row, name: str) -> None:
    args = ("--objective", row.name, "--statistic", name, "--rank", 2, "--out", tmp_path / "new")
    run = osrm("init", "--exclude", "mood", *args, cwd=everything)
    if name.partition(":")[0] not in row.statistics:
        assert run.code == 1
        assert run.error.startswith(f"objective '{row.name}' cannot be chosen from '{name}', but from: ")
        assert not (tmp_path / "new").exists()
        return
    assert run.code == 0, run
    assert json.loads((tmp_path / "new/mood/osrm.json").read_text())["settings"]["statistic"] == name
    adapter = open_adapter(tmp_path / "new/mood")
    for layer in adapter.layers:
        A = adapter.lora_factors(layer, torch.float64).A
        assert (A @ A.T - torch.eye(2)).abs().max() < 1e-5
        out = [load_file(everything / f"features/{task}.safetensors") for task in ("pair", "score")]
        source = layer.replace("value", "query")
        caught = [float((A @ held[f"{source}.second-moment"].double() @ A.T).trace()) for held in out]
        traces = [float(held[f"{source}.second-moment"].trace()) for held in out]
        if row.name == "osrm" and name in ("second-moment", "sketch:6", "samples"):  # less than random catches
            assert sum(c / t for c, t in zip(caught, traces, strict=True)) / 2 < 2 / 16


def test_loss_aware_reads_the_own_gradient_alone(everything: Path, tmp_path: Path) -> None:
    """The task's own file may hold nothing else."""
    (tmp_path / "osrm.toml").write_text((everything / "osrm.toml").read_text())
    (tmp_path / "features").mkdir()
    for task in ("pair", "score"):
        held = everything / f"features/{task}.safetensors"
        (tmp_path / f"features/{task}.safetensors").write_bytes(held.read_bytes())
    assert osrm("collect", "--task", "mood", "--samples", 30, "--statistic", "gradient", cwd=tmp_path).code == 0
    run = osrm("init", "--exclude", "mood", "--objective", "loss-aware", "--rank", 2, cwd=tmp_path)
    assert run.code == 0, run
    osrm("init", "--each", "--objective", "loss-aware", "--rank", 2, "--out", tmp_path / "each", cwd=everything)
    ours, theirs = open_adapter(tmp_path / "starts/mood"), open_adapter(tmp_path / "each/mood")
    for layer in ours.layers:
        A, B = ours.lora_factors(layer, torch.float64).A, theirs.lora_factors(layer, torch.float64).A
        assert (A.T @ A - B.T @ B).norm() < 1e-4


def test_without_a_gradient_the_command_that_makes_one_is_told(everything: Path, tmp_path: Path) -> None:
    (tmp_path / "osrm.toml").write_text((everything / "osrm.toml").read_text())
    assert osrm("collect", "--samples", 4, "--statistic", "second-moment", cwd=tmp_path).code == 0
    run = osrm("init", "--exclude", "mood", "--objective", "loss-aware", "--rank", 2, cwd=tmp_path)
    assert run.error == "features/mood.safetensors has no statistic 'gradient', it holds: second-moment"
    hint = "osrm collect --overwrite --task mood --statistic second-moment --statistic gradient"
    assert f"hint: {hint}" in run.stderr
    assert osrm(*hint.split()[1:], "--samples", 30, cwd=tmp_path).code == 0
    assert osrm("init", "--exclude", "mood", "--objective", "loss-aware", "--rank", 2, cwd=tmp_path).code == 0


def test_a_step_on_b_lowers_the_loss_most_per_interference(
    everything: Path, tmp_path: Path, tiny_model, text_tasks
) -> None:
    """The real loss of the real model, on the examples and at the heads that the gradient was taken at."""
    decrease = {}
    for name in ("loss-aware", "random-orthonormal", "osrm", "eva"):
        out = tmp_path / name
        args = ("--objective", name, "--rank", 2, "--eps", 0.01, "--out", out)
        assert osrm("init", "--exclude", "mood", *args, cwd=everything).code == 0
        decrease[name] = _decrease_per_interference(everything, out / "mood", tiny_model("bert"), text_tasks)
    assert decrease["loss-aware"] > 1.05 * max(decrease[name] for name in decrease if name != "loss-aware"), decrease


def _decrease_per_interference(project_copy: Path, start: Path, folder: Path, text_tasks: Path) -> float:
    """``(L(0) - L(step)) / h`` of a step on B along its own gradient whose interference has norm ``h``, small."""
    tokenizer = load_tokenizer(folder)
    data = draw_examples(load_split("mood", text_tasks, "train"), 30, 0)
    encodings = tokenize_for_classifier(tokenizer, data.examples, 128)
    classifier = load_classifier(folder, 2, tokenizer, torch.float32, 0)
    model = to_trainable_peft_model(classifier, open_adapter(start), None).double().eval()
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_B") and hasattr(m, "base_layer")}
    Bs = [layer.lora_B["default"].weight.requires_grad_() for layer in layers.values()]
    _, head = linear_head.find_head_layer(model)
    halves, cpu = _halve_gradient_sample(data), torch.device("cpu")
    Z = linear_head.compute_representations(model, encodings, tokenizer, cpu, 8, lambda _: None).double()

    def losses() -> Iterator[torch.Tensor]:
        for fitted, judged in (halves, halves[::-1]):
            linear_head.fit_linear_head(head, data.task, Z[fitted], [data.labels[i] for i in fitted])
            logits = model(**collate_batch([encodings[i] for i in judged], tokenizer, cpu)).logits
            yield cross_entropy(logits, torch.tensor([data.labels[i] for i in judged]), reduction="sum") / len(
                encodings
            )

    before, slopes = 0.0, [torch.zeros_like(B) for B in Bs]
    for value in losses():
        before += float(value.detach())
        slopes = [slope + more for slope, more in zip(slopes, torch.autograd.grad(value, Bs), strict=True)]
    out = [load_file(project_copy / f"features/{task}.safetensors") for task in ("pair", "score")]
    energy = 0.0
    for (name, layer), slope in zip(layers.items(), slopes, strict=True):
        source = name.removeprefix("base_model.model.").replace("value", "query")
        moments = [held[f"{source}.second-moment"].double() for held in out]
        C = sum(moment / moment.trace() for moment in moments) / 2
        M = C + 0.01 * C.trace() / 16 * torch.eye(16, dtype=torch.float64)
        A = layer.lora_A["default"].weight.detach()
        # The best step of this interference: B = -slope (A M A^T)^-1.
        step = -slope @ torch.linalg.inv(A @ M @ A.T)
        energy += float((step @ A @ M @ A.T @ step.T).trace())
        layer.lora_B["default"].weight.data.copy_(step)
    height = 1e-4
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B["default"].weight.mul_(height / energy**0.5)
        return (before - sum(map(float, losses()))) / height


@pytest.mark.parametrize("name", ["osrm", "osrm-in", "gevd", "eva", "loss-aware"])
def test_a_rank_budget_is_spent(everything: Path, tmp_path: Path, name: str) -> None:
    read = "second-moment"
    args = ("init", "--each", "--objective", name, "--statistic", read, "--rank-budget", 11, "--out", tmp_path / "new")
    run = osrm(*args, cwd=everything)
    assert run.code == 0, run
    assert "ranks of 11 in all" in run.stdout
    for task in ("mood", "pair", "score"):
        adapter = open_adapter(tmp_path / "new" / task)
        ranks = [adapter.lora_factors(layer).rank for layer in adapter.layers]
        assert sum(ranks) == 11
        assert max(ranks) <= 6
        assert {layer.scaling for layer in adapter.layers.values()} == {2.0}
        for layer in adapter.layers:
            A = adapter.lora_factors(layer, torch.float64).A
            assert (A @ A.T - torch.eye(len(A))).abs().max() < 1e-5
    settings = json.loads((tmp_path / "new/mood/osrm.json").read_text())["settings"]
    assert (settings["rank_budget"], settings["rank"]) == (11, 11 / 4)


def test_eva_s_budget_goes_where_the_energy_is(everything: Path, tmp_path: Path) -> None:
    args = ("--objective", "eva", "--rank-budget", 12, "--out", tmp_path / "new")
    assert osrm("init", "--exclude", "mood", *args, cwd=everything).code == 0
    adapter, held = open_adapter(tmp_path / "new/mood"), load_file(everything / "features/mood.safetensors")
    spectra = {}
    for layer in adapter.layers:
        C = held[f"{layer.replace('value', 'query')}.second-moment"].double()
        spectra[layer] = torch.linalg.eigvalsh(C).flip(0) / C.trace()
    kept = [float(spectra[layer][adapter.lora_factors(layer).rank - 1]) for layer in adapter.layers]
    left = [
        float(spectra[layer][adapter.lora_factors(layer).rank])
        for layer in adapter.layers
        if adapter.lora_factors(layer).rank < 6
    ]
    assert min(kept) >= max(left) - 1e-6


def test_a_budget_without_preferences_is_even(everything: Path, tmp_path: Path) -> None:
    """All of a null space is worth the same."""
    args = ("--statistic", "mean", "--rank-budget", 12, "--out", tmp_path / "new")
    assert osrm("init", "--exclude", "mood", *args, cwd=everything).code == 0
    assert json.loads((tmp_path / "new/mood/adapter_config.json").read_text())["rank_pattern"] == {}


def test_ranks_by_budget_go_through_training_merging_and_peft(everything: Path, tmp_path: Path, tiny_model) -> None:
    (tmp_path / "osrm.toml").write_text((everything / "osrm.toml").read_text())
    features = ("--features", everything / "features")
    run = osrm("init", "--each", "--objective", "eva", "--rank-budget", 9, "--alpha", 9, *features, cwd=tmp_path)
    assert run.code == 0, run
    train = ("train", "starts/mood", "starts/pair", "--epochs", 1, "--lr", 0.01, "--limit", 48, "--dev-limit", 8)
    assert osrm(*train, cwd=tmp_path).code == 0
    for task, labels in (("mood", 2), ("pair", 3)):
        start, adapter = (open_adapter(tmp_path / place / task) for place in ("starts", "adapters"))
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=labels)
        model = PeftModel.from_pretrained(base, str(tmp_path / "adapters" / task))
        for layer in adapter.layers:
            assert adapter.layers[layer].scaling == start.layers[layer].scaling == pytest.approx(9 / (9 / 4))
            factors = adapter.lora_factors(layer, torch.float64)
            assert factors.rank == start.lora_factors(layer).rank
            delta = model.base_model.model.get_submodule(layer).get_delta_weight("default").double()
            assert (delta - 4 * factors.B @ factors.A).norm() <= 1e-6 * delta.norm()
            assert factors.B.any()
    merged = osrm("merge", "adapters/mood", "adapters/pair", "--method", "task-arith", "--lambda", 0.5, cwd=tmp_path)
    assert merged.code == 0, merged


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--objective", "kaiming", "--rank-budget", 8), "objective 'kaiming' has no spectrum"),
        (("--objective", "official", "--rank-budget", 8), "objective 'official' has no spectrum"),
        (("--rank-budget", 3), "rank budget 3 does not fit, expected 4 to "),
        (("--rank-budget", 65), "rank budget 65 does not fit, expected 4 to 64 in all"),
    ],
)
def test_a_budget_that_cannot_be_spread(everything: Path, tmp_path: Path, more: tuple[object, ...], error: str) -> None:
    run = osrm("init", "--exclude", "mood", *more, "--out", tmp_path / "new", cwd=everything)
    assert run.code == 1
    assert run.error.startswith(error)
    assert not (tmp_path / "new").exists()


def test_rank_and_budget_exclude_one_another(everything: Path) -> None:
    assert osrm("init", "--each", "--rank", 4, "--rank-budget", 16, cwd=everything).code == 2


def test_what_a_sketch_may_hide_is_told(everything: Path, tmp_path: Path) -> None:
    args = ("--rank", 2, "--out", tmp_path / "new")
    run = osrm("init", "--exclude", "mood", "--statistic", "sketch", *args, cwd=everything)
    kept = json.loads((tmp_path / "new/mood/osrm.json").read_text())["concerns"]
    assert any("the sketches may hide" in doubt for doubt in kept) == ("the sketches may hide" in run.stderr)
    (tmp_path / "osrm.toml").write_text((everything / "osrm.toml").read_text())
    osrm("collect", "--statistic", "sketch:1", "--samples", 10, cwd=tmp_path)
    run = osrm("init", "--exclude", "mood", "--rank", 2, cwd=tmp_path)
    assert run.stderr.count("the sketches may hide") == 1
