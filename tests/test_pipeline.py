"""The five commands, end to end, on every family of models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import FAMILIES
from tests.run_cli import osrm

TASKS = ("mood", "pair", "score")
LABELS = {"mood": 2, "pair": 3, "score": 1}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pipeline_run(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    text_tasks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder in which the pipeline has run."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "osrm.toml").write_text(f'model = "{tiny_model(request.param)}"\ndata = "{text_tasks}"\nquiet = true\n')
    for command in (
        "collect --samples 20",
        "init --each --rank 2",
        "train starts/mood starts/pair starts/score --epochs 1 --lr 0.01 --dtype float32",
        "merge adapters/mood adapters/pair adapters/score --method task-arith --lambda 0.5",
        "eval merged",
    ):
        run = osrm(*command.split(), cwd=folder)
        assert run.code == 0, (command, run)
    return folder


def test_every_file_between_two_commands_is_there(pipeline_run: Path) -> None:
    for task in TASKS:
        for path in (f"features/{task}.safetensors", f"starts/{task}/osrm.json", f"adapters/{task}/training.json"):
            assert (pipeline_run / path).is_file()
        assert (pipeline_run / "adapters" / task / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(pipeline_run.glob("**/.*"))  # nothing staged is left


def test_start_is_a_no_op_with_orthonormal_rows(pipeline_run: Path) -> None:
    factors = load_file(pipeline_run / "starts/mood/adapter_model.safetensors")
    for name, tensor in factors.items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(2), atol=1e-5, rtol=0)


def test_start_avoids_the_other_tasks_means(pipeline_run: Path) -> None:
    assert osrm("init", "--exclude", "mood", "--objective", "osrm", "--out", "means", cwd=pipeline_run).code == 0
    factors = load_file(pipeline_run / "means/mood/adapter_model.safetensors")
    for task, near in (("pair", True), ("score", True), ("mood", False)):
        features = load_file(pipeline_run / f"features/{task}.safetensors")
        layers = json.loads(_header(pipeline_run / f"features/{task}.safetensors")["osrm"])["layers"]
        for layer, facts in layers.items():
            mean = features[f"{facts['source']}.mean"]
            part = (factors[f"base_model.model.{layer}.lora_A.weight"] @ mean).norm() / mean.norm()
            assert (part < 1e-5) == near, (task, layer, part)


def test_training_moved_both_factors_and_says_how_far(pipeline_run: Path) -> None:
    facts = json.loads((pipeline_run / "adapters/mood/training.json").read_text())
    assert 0 < facts["drift"]["overall"] < 1
    start = load_file(pipeline_run / "starts/mood/adapter_model.safetensors")
    for name, tensor in load_file(pipeline_run / "adapters/mood/adapter_model.safetensors").items():
        if "lora_" in name:
            assert not torch.equal(tensor, start[name]), name


def test_merged_update_is_the_exact_sum(pipeline_run: Path) -> None:
    merged = load_file(pipeline_run / "merged/adapter_model.safetensors")
    sources = [load_file(pipeline_run / "adapters" / task / "adapter_model.safetensors") for task in TASKS]
    for name in merged:
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            expected = sum(0.5 * 2.0 * s[other].double() @ s[name].double() for s in sources)
            found = merged[other].double() @ merged[name].double()
            assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("task", TASKS)
def test_plain_peft_gives_the_logits_that_eval_scored(pipeline_run: Path, text_tasks: Path, task: str) -> None:
    """The five lines of the merge guide, one example at a time, beside what ``eval`` computes in padded batches."""
    from osrm_cli.adapters.open_adapter import open_adapter
    from osrm_cli.models.classifier import load_classifier, load_tokenizer, with_adapter_on_backbone
    from osrm_cli.models.token_batches import compute_logits, tokenize_for_classifier
    from osrm_cli.tasks.loading import load_split

    base = json.loads((pipeline_run / "merged/adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS[task])
    model = PeftModel.from_pretrained(model, str(pipeline_run / "merged/tasks" / task)).eval()
    examples = load_split(task, str(text_tasks), "dev").examples
    with torch.inference_mode():
        plain = torch.cat([model(**tokenizer(*x.texts, return_tensors="pt")).logits for x in examples])

    own = load_tokenizer(Path(base))
    bare = load_classifier(Path(base), 2, own, torch.float32, 0).model
    encodings = tokenize_for_classifier(own, examples, 128)
    with with_adapter_on_backbone(bare, open_adapter(pipeline_run / "merged/tasks" / task), LABELS[task]) as whole:
        ours = compute_logits(whole, encodings, own, torch.device("cpu"), 8, lambda _: None)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_scores_stand_beside_the_single_adapters(pipeline_run: Path) -> None:
    scores = json.loads((pipeline_run / "merged/scores.json").read_text())
    assert set(scores["tasks"]) == set(TASKS)
    for task in TASKS:
        alone = json.loads((pipeline_run / "adapters" / task / "training.json").read_text())["dev"]["scores"][
            "headline"
        ]
        assert scores["tasks"][task]["single"] == pytest.approx(alone, abs=1e-6)
    expected = sum(row["headline"] for row in scores["tasks"].values()) / 3
    assert scores["average"]["headline"] == pytest.approx(expected)


def test_merged_as_model_scores_the_same(pipeline_run: Path) -> None:
    adapters = [f"adapters/{task}" for task in TASKS]
    run = osrm("merge", *adapters, "--lambda", 0.5, "--as", "model", "--out", "whole", "--overwrite", cwd=pipeline_run)
    assert run.code == 0, run
    run = osrm("eval", "whole", "--overwrite", cwd=pipeline_run)
    assert run.code == 0, run
    ours, theirs = (
        json.loads((pipeline_run / name / "scores.json").read_text())["tasks"] for name in ("whole", "merged")
    )
    for task in TASKS:
        assert ours[task]["headline"] == pytest.approx(theirs[task]["headline"], abs=1e-2)


def test_same_inputs_same_bytes(pipeline_run: Path) -> None:
    for command, paths in (
        ("collect --task mood --samples 20 --out again/features", ["features/mood.safetensors"]),
        ("init --exclude mood --rank 2 --out again/starts", ["starts/mood"]),
        ("train starts/mood --epochs 1 --lr 0.01 --dtype float32 --out again/adapters", ["adapters/mood"]),
    ):
        run = osrm(*command.split(), "--overwrite", cwd=pipeline_run)
        assert run.code == 0, run
        for path in paths:
            files = (
                [pipeline_run / path] if (pipeline_run / path).is_file() else sorted((pipeline_run / path).iterdir())
            )
            for file in files:
                assert (pipeline_run / "again" / file.relative_to(pipeline_run)).read_bytes() == file.read_bytes(), file


def _header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())
