"""``osrm calibrate`` and ``osrm merge --calibrate`` from outside."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from osrm_cli.adapters import task_data
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.calibration.head_map import fit_head_map
from osrm_cli.models import linear_head
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.token_batches import compute_logits, tokenize_for_classifier
from osrm_cli.storage import records
from tests.run_cli import ROOT, listing, osrm

WEIGHTS = "adapter_model.safetensors"
LABELS = {"mood": 2, "pair": 3, "score": 1}
ADAPTERS = [f"adapters/{task}" for task in LABELS]


@pytest.fixture(scope="module")
def calibrated_project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with ``calibrated/`` in it; never written to by a test."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("calibrated") / "work"))
    run = osrm("calibrate", "merged", cwd=folder)
    assert run.code == 0, run
    return folder


def record(folder: Path) -> dict[str, Any]:
    return dict(records.read_record(folder)["calibration"])


def head(folder: Path) -> dict[str, torch.Tensor]:
    """A task's head, by the names in the base model."""
    path = folder / "head.safetensors"
    found = load_file(path if path.exists() else folder / WEIGHTS)
    return {name.removeprefix("base_model.model."): x for name, x in found.items() if "lora_" not in name}


def same(one: Path, two: Path) -> None:
    """Two folders hold the same bytes."""
    assert listing(one) == listing(two)
    for path in listing(one):
        assert (one / path).read_bytes() == (two / path).read_bytes(), path


def test_only_heads_records_and_card_change(calibrated_project: Path, project: Path) -> None:
    same(calibrated_project / "merged", project / "merged")  # the input stays
    assert listing(calibrated_project / "calibrated") == listing(calibrated_project / "merged")
    changed = {
        path
        for path in listing(calibrated_project / "merged")
        if (calibrated_project / "merged" / path).read_bytes()
        != (calibrated_project / "calibrated" / path).read_bytes()
    }
    tasks = {f"tasks/{task}/{name}" for task in LABELS for name in (WEIGHTS, "osrm.json")}
    assert changed == {"osrm.json", "README.md", *tasks}
    for task in LABELS:
        old, new = (
            load_file(calibrated_project / name / "tasks" / task / WEIGHTS) for name in ("merged", "calibrated")
        )
        assert {name for name in old if not torch.equal(old[name], new[name])} == {
            "base_model.model.classifier.weight",
            "base_model.model.classifier.bias",
        }
    facts = records.read_record(calibrated_project / "calibrated")
    assert {key for key in facts if facts[key] != records.read_record(calibrated_project / "merged").get(key)} == {
        "calibration",
        "files",
    }


def test_what_the_record_the_table_and_the_card_say(calibrated_project: Path) -> None:
    facts = record(calibrated_project / "calibrated")
    assert facts["settings"] == {"samples": 128, "seed": 0, "dtype": "float32", "batch_size": 32}
    card = (calibrated_project / "calibrated/README.md").read_text()
    assert card.startswith((calibrated_project / "merged/README.md").read_text())
    for task, row in facts["tasks"].items():
        assert row["samples"] == 48  # all there are
        assert row["used"]
        assert 0 <= row["error"] < row["before"]
        assert row["strength"] > 0
        assert row["spread"] == 1 if task == "score" else 1 <= row["spread"] <= 2
        assert record(calibrated_project / "calibrated/tasks" / task) == {"settings": facts["settings"], **row}
        assert f"| {task} | 48 | {row['before']:.3g} |" in card
    run = osrm("calibrate", "merged", "--out", "again", "--json", cwd=calibrated_project)
    assert json.loads(run.stdout) == {"path": "again", "tasks": facts["tasks"]}
    same(calibrated_project / "again", calibrated_project / "calibrated")
    shown = osrm("calibrate", "merged", "--out", "again", "--overwrite", cwd=calibrated_project).stdout
    assert all(word in shown for word in (*LABELS, "before", "after", "calibrated"))


@pytest.mark.parametrize("task", LABELS)
def test_the_written_head_is_the_map_and_then_the_old_head(
    calibrated_project: Path, tiny_model: Callable[[str], Path], task: str
) -> None:
    """Through plain PEFT, beside a map that is fitted here from the same texts."""
    place = tiny_model("bert")
    tokenizer = load_tokenizer(place)
    adapter = open_adapter(calibrated_project / "adapters" / task)
    sample = task_data.draw_adapter_texts([adapter], None, 128, 0)[0]
    encodings = tokenize_for_classifier(tokenizer, sample.data.examples, sample.max_length)
    rest = (encodings, tokenizer, torch.device("cpu"), 32, lambda _: None)

    def peft(folder: str) -> PeftModel:
        model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=LABELS[task])
        return PeftModel.from_pretrained(model, str(calibrated_project / folder)).eval()

    single = linear_head.compute_representations(peft(f"adapters/{task}"), *rest)
    merged = linear_head.compute_representations(peft(f"merged/tasks/{task}"), *rest)
    _, layer = linear_head.find_head_layer(peft(f"merged/tasks/{task}"))
    found = fit_head_map(layer, merged, single)
    expected = linear(merged.double() @ found.M + found.shift, layer.weight.double(), layer.bias.double())
    logits = compute_logits(peft(f"calibrated/tasks/{task}"), *rest)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    assert record(calibrated_project / "calibrated")["tasks"][task]["error"] == pytest.approx(found.error, rel=1e-3)


def test_merge_calibrate_is_merge_and_then_calibrate(calibrated_project: Path) -> None:
    run = osrm("merge", *ADAPTERS, "--lambda", 0.5, "--calibrate", "--out", "one", cwd=calibrated_project)
    assert run.code == 0, run
    same(calibrated_project / "one", calibrated_project / "calibrated")
    run = osrm(
        *("merge", *ADAPTERS, "--lambda", 0.5, "--calibrate", "--samples", 9, "--seed", 3, "--out", "two", "--json"),
        cwd=calibrated_project,
    )
    assert osrm("calibrate", "merged", "--samples", 9, "--seed", 3, "--out", "three", cwd=calibrated_project).code == 0
    same(calibrated_project / "two", calibrated_project / "three")
    assert json.loads(run.stdout)["calibration"] == record(calibrated_project / "three")["tasks"]
    assert record(calibrated_project / "two")["tasks"]["pair"]["samples"] == 9
    assert (
        head(calibrated_project / "two/tasks/pair")["classifier.bias"]
        .ne(head(calibrated_project / "one/tasks/pair")["classifier.bias"])
        .any()
    )


def test_eval_reads_the_result(project_copy: Path) -> None:
    assert osrm("eval", "merged", cwd=project_copy).code == 0
    assert osrm("calibrate", cwd=project_copy).code == 0
    assert not (project_copy / "calibrated/scores.json").exists()  # those of merged are not its own
    run = osrm("eval", "calibrated", "--json", cwd=project_copy)
    assert run.code == 0, run
    found = json.loads(run.stdout)["tasks"]
    assert {task: row["single"] for task, row in found.items()} == {
        task: row["single"]
        for task, row in json.loads((project_copy / "merged/scores.json").read_text())["tasks"].items()
    }


def change_labels(data: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    for path in data.glob("*/train.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def permute(rows: list[dict[str, Any]]) -> None:
    labels = [row["label"] for row in rows]
    for row, label in zip(rows, labels[1:] + labels[:1], strict=True):
        row["label"] = label


def drop(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        del row["label"]


def spoil(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["label"] = "no such class"


@pytest.mark.parametrize("change", [permute, drop, spoil])
def test_labels_are_never_read(calibrated_project: Path, text_tasks: Path, tmp_path: Path, change: Any) -> None:
    for name in ("as they are", "changed"):
        shutil.copytree(text_tasks, tmp_path / name / "data")
        shutil.copytree(calibrated_project / "merged", tmp_path / name / "merged")
        shutil.copytree(calibrated_project / "adapters", tmp_path / name / "adapters")
    change_labels(tmp_path / "changed/data", change)
    for name in ("as they are", "changed"):
        run = osrm("calibrate", "-q", "--data", "data", cwd=tmp_path / name)
        assert run.code == 0, run
    same(tmp_path / "as they are/calibrated", tmp_path / "changed/calibrated")


def test_a_lone_adapter_keeps_its_head(calibrated_project: Path) -> None:
    assert osrm("merge", "adapters/mood", "--lambda", 1, "--out", "alone", cwd=calibrated_project).code == 0
    run = osrm("calibrate", "alone", "--out", "alone-calibrated", cwd=calibrated_project)
    assert run.code == 0, run
    assert "kept" in run.stdout
    row = record(calibrated_project / "alone-calibrated")["tasks"]["mood"]
    assert not row["used"]
    assert row["error"] >= row["before"]
    ours, theirs = (calibrated_project / name / "tasks/mood" / WEIGHTS for name in ("alone-calibrated", "alone"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert "| as merged |" in (calibrated_project / "alone-calibrated/README.md").read_text()


def test_every_form(calibrated_project: Path) -> None:
    """A whole model's heads are those of the adapter that has the same update; a task-aware merge has its own."""
    for form, *words in (("model", "--lambda", 0.5, "--as", "model"), ("aware", "--method", "emr")):
        assert osrm("merge", *ADAPTERS, *words, "--out", form, cwd=calibrated_project).code == 0
        run = osrm("calibrate", form, "--out", f"{form}-calibrated", cwd=calibrated_project)
        assert run.code == 0, run
        assert listing(calibrated_project / form) == listing(calibrated_project / f"{form}-calibrated")
        run = osrm("merge", *ADAPTERS, *words, "--calibrate", "--out", f"{form}-at-once", cwd=calibrated_project)
        assert run.code == 0, run
        same(calibrated_project / f"{form}-calibrated", calibrated_project / f"{form}-at-once")
        assert osrm("eval", f"{form}-calibrated", cwd=calibrated_project).code == 0
        (calibrated_project / f"{form}-calibrated/scores.json").unlink()
    for task in LABELS:
        for name, tensor in head(calibrated_project / "calibrated/tasks" / task).items():
            found, scale = head(calibrated_project / "model-calibrated/tasks" / task)[name], float(tensor.abs().max())
            # Adding the update in two ways rounds differently, and a tiny model's map is ill-conditioned.
            torch.testing.assert_close(found, tensor, atol=5e-3 * scale, rtol=5e-3)
        row = record(calibrated_project / "aware-calibrated")["tasks"][task]
        assert row["error"] < row["before"] if row["used"] else row["error"] >= row["before"]


HEADS = {"llama": "score", "t5": "classification_head.out_proj", "roberta": "classifier.out_proj"}


@pytest.mark.parametrize("family", HEADS)
def test_other_heads(family: str, tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path: Path) -> None:
    """Merged and calibrated at once; plain PEFT loads it without a warning, which would be an error here."""
    targets = {"llama": ["q_proj", "v_proj"], "t5": ["q", "v"], "roberta": ["query", "value"]}[family]
    for seed, task in enumerate(("mood", "pair")):
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model(family), num_labels=LABELS[task])
        config = LoraConfig(
            task_type="SEQ_CLS", target_modules=targets, modules_to_save=[HEADS[family].partition(".")[0]], r=3
        )
        adapter = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        adapter.save_pretrained(str(tmp_path / task))
    run = osrm(
        *("merge", "mood", "pair", "--lambda", 1, "--calibrate", "--data", text_tasks, "--model", tiny_model(family)),
        cwd=tmp_path,
    )
    assert run.code == 0, run
    old, new = head(tmp_path / "mood"), head(tmp_path / "merged/tasks/mood")
    assert {name for name in new if not torch.equal(old[name], new[name])} == {
        name for name in new if name.startswith(HEADS[family])
    }
    assert (f"{HEADS[family]}.bias" in new) == (family != "llama")
    row = record(tmp_path / "merged")["tasks"]["mood"]
    assert row["error"] < row["before"]
    fresh = AutoModelForSequenceClassification.from_pretrained(tiny_model(family), num_labels=2)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "merged/tasks/mood"))
    name, layer = linear_head.find_head_layer(loaded)
    assert torch.equal(layer.weight, new[f"{name}.weight"])


def test_adapters_that_have_moved(project_copy: Path) -> None:
    assert osrm("calibrate", "--out", "before", cwd=project_copy).code == 0
    (project_copy / "adapters").rename(project_copy / "elsewhere")
    (project_copy / "elsewhere/mood").rename(project_copy / "elsewhere/renamed")
    run = osrm("calibrate", cwd=project_copy)
    # It was a folder: the hub is not asked for a repository of that name.
    assert run.error.startswith("the adapter that 'mood' was merged from is not available: adapters/mood is missing")
    assert "--adapters FOLDER" in run.stderr
    assert not (project_copy / "calibrated").exists()
    run = osrm("calibrate", "--adapters", "elsewhere", cwd=project_copy)
    assert run.code == 0, run
    same(project_copy / "calibrated", project_copy / "before")


def test_adapters_that_have_changed(project_copy: Path) -> None:
    path = project_copy / "adapters/mood" / WEIGHTS
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    run = osrm("calibrate", cwd=project_copy)
    assert run.error == "adapters/mood has changed since 'mood' was merged from it"
    run = osrm("calibrate", "--adapters", "adapters", cwd=project_copy)
    assert run.error == "none of the 3 adapters in adapters is the one that 'mood' was merged from"


def test_refusals(calibrated_project: Path) -> None:
    before = listing(calibrated_project)
    for words, error in (
        (("calibrated", "--out", "x"), "calibrated is calibrated already"),
        (("adapters/mood", "--out", "x"), "adapters/mood is not a merged folder"),
        (("nowhere", "--out", "x"), "nowhere is missing"),
        (("merged",), "calibrated exists already"),
        (("merged", "--out", "x", "--data", "nowhere"), "no data folder nowhere"),
        (("merged", "--out", "x", "--model", calibrated_project / "nowhere"), "is neither a folder nor"),
    ):
        run = osrm("calibrate", *words, cwd=calibrated_project)
        assert (run.code, run.stdout) == (1, "")
        assert error in run.error
    assert osrm("calibrate", "merged", "--samples", 2, "--out", "x", cwd=calibrated_project).code == 2
    run = osrm("calibrate", "merged", "--out", "x", "--dry-run", cwd=calibrated_project)
    assert (run.code, run.stdout) == (0, "would write x: mood, pair, score\n")
    run = osrm("merge", *ADAPTERS, "--samples", 9, "--out", "x", cwd=calibrated_project)
    assert run.error == "method task-arith does not use --samples"
    assert listing(calibrated_project) == before


def test_merged_without_heads(project_copy: Path) -> None:
    for task in LABELS:
        path = project_copy / "adapters" / task / WEIGHTS
        save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" in name}, path)
    run = osrm("merge", *ADAPTERS, "--calibrate", "--out", "x", cwd=project_copy)
    assert run.error == "no adapter has a head that could be calibrated"
    assert osrm("merge", *ADAPTERS, "--out", "x", cwd=project_copy).code == 0
    run = osrm("calibrate", "x", cwd=project_copy)
    assert run.error == "x contains no head, only the merged update"


def test_a_full_disk_is_one_line(calibrated_project: Path) -> None:
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (11, 11))
from osrm_cli.cli.app import main
sys.argv = "osrm calibrate merged --samples 12 --out full".split()
main()
"""
    words, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=calibrated_project, env=env, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: cannot write full: the file would be larger than allowed\n")
    assert not list(calibrated_project.glob("*full*"))
    assert not list(calibrated_project.glob(".full*"))
