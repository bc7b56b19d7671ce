"""``osrm verify``: what is damaged, where, and by which record it is found."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_cli import osrm


def flip(path: Path, place: int = -1) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def checks(folder: Path, *words: str) -> tuple[int, dict[str, set[str]], str]:
    """Exit code, what was found by result, and the output."""
    run = osrm("verify", *words, "--json", cwd=folder)
    found = json.loads(run.stdout)
    results = {
        result: {row["name"] for row in found["checks"] if row["result"] == result} for result in found["counts"]
    }
    return run.code, results, run.stderr


def test_what_is_undamaged_is_the_same_down_to_the_data(project: Path) -> None:
    code, found, errors = checks(project, "merged")
    assert (code, errors) == (0, "")
    assert not found["differs"] | found["missing"]
    names = {Path(name).name for name in found["same"]}
    assert {"adapter_model.safetensors", "training.json", "merge.yaml", "mood.safetensors", "train", "dev"} <= names


DAMAGE = {
    "merged/adapter_model.safetensors": "merged/adapter_model.safetensors",
    "merged/tasks/pair/adapter_model.safetensors": "merged/tasks/pair/adapter_model.safetensors",
    "merged/tasks/pair/osrm.json": "merged/tasks/pair/osrm.json",
    "adapters/mood/adapter_model.safetensors": "adapters/mood",
    "adapters/mood/training.json": "adapters/mood/training.json",
    "starts/score/adapter_model.safetensors": "starts/score",
    "features/mood.safetensors": "features/mood.safetensors",
}


@pytest.mark.parametrize("path", DAMAGE)
def test_one_changed_bit_of_a_payload_is_named(project_copy: Path, path: str) -> None:
    flip(project_copy / path, -2)
    code, found, errors = checks(project_copy, "merged")
    assert code == 1
    assert DAMAGE[path] in found["differs"]
    assert len(errors.splitlines()) == 2
    assert errors.startswith("error: of ")


def test_features_know_their_own_tensors(project_copy: Path) -> None:
    flip(project_copy / "features/pair.safetensors")
    code, found, _ = checks(project_copy, "features")
    assert (code, found["differs"]) == (1, {"features/pair.safetensors"})


def test_changed_weights_of_the_base_model_differ_also_behind_a_link_named_after_their_digest(
    project_copy: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model("bert"), base)
    weights = base / "model.safetensors"
    blob = tmp_path / ("a" * 64)
    weights.rename(blob)
    weights.symlink_to(blob)
    features = osrm("collect", "--model", base, "--task", "mood", "--samples", 4, "--out", "own", cwd=project_copy)
    assert features.code == 0, features
    assert checks(project_copy, "own")[0] == 0
    flip(blob)
    code, found, _ = checks(project_copy, "own")
    assert (code, found["differs"]) == (1, {str(base)})


def test_changed_examples_differ(project_copy: Path, text_tasks: Path, tmp_path: Path) -> None:
    data = shutil.copytree(text_tasks, tmp_path / "data")
    out = osrm("collect", "--data", data, "--task", "mood", "--samples", 8, "--out", "own", cwd=project_copy)
    assert out.code == 0, out
    train = data / "mood/train.jsonl"
    train.write_text(train.read_text().replace("w1", "w2"))
    code, found, _ = checks(project_copy, "own")
    assert (code, found["differs"]) == (1, {f"{data}/mood/train"})


def test_what_is_gone_is_missing_unless_that_is_accepted(project_copy: Path) -> None:
    shutil.rmtree(project_copy / "starts")
    code, found, errors = checks(project_copy, "adapters")
    assert code == 1
    assert found["missing"] == {"starts/mood", "starts/pair", "starts/score"}
    assert "3 cannot be compared" in errors
    assert checks(project_copy, "adapters", "--ignore-missing")[0] == 0
    (project_copy / "adapters/mood/loss.png").unlink()
    code, found, _ = checks(project_copy, "adapters/mood")
    assert "adapters/mood/loss.png" in found["missing"]


def test_a_record_that_cannot_be_read_differs(project_copy: Path) -> None:
    (project_copy / "adapters/mood/osrm.json").write_text('{"command": 5}')
    code, found, _ = checks(project_copy, "merged")
    assert code == 1
    assert "adapters/mood/osrm.json" in found["differs"]


@pytest.mark.parametrize(
    ("key", "value"), [("limit", "x"), ("limit", 1.5), ("seed", None), ("dev_limit", "x")], ids=str
)
def test_a_record_whose_data_cannot_be_drawn_differs(project_copy: Path, key: str, value: object) -> None:
    path = project_copy / "adapters/mood/osrm.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"settings": record["settings"] | {"limit": 8, key: value}}))
    code, found, _ = checks(project_copy, "adapters/mood")
    assert code == 1
    assert "adapters/mood/osrm.json" in found["differs"]


def test_a_changed_model_card_is_nobody_s_fault(project_copy: Path) -> None:
    (project_copy / "merged/README.md").write_text("mine")
    assert checks(project_copy, "merged")[0] == 0


def test_scores_name_the_weights_that_they_were_measured_on(project_copy: Path) -> None:
    assert osrm("eval", "merged", cwd=project_copy).code == 0
    code, found, _ = checks(project_copy, "merged")
    assert code == 0
    assert "merged/tasks/mood/adapter_model.safetensors" in found["same"]
    (project_copy / "merged/scores.json").write_text("{")
    code, found, _ = checks(project_copy, "merged/scores.json")
    assert (code, found["differs"]) == (1, {"merged/scores.json"})


def test_calibrated_heads_and_sweeps_record_their_examples(project_copy: Path) -> None:
    for command in ("calibrate merged --samples 12", "sweep adapters/mood adapters/pair --lambda 0.5"):
        run = osrm(*command.split(), cwd=project_copy)
        assert run.code == 0, run
    code, found, errors = checks(project_copy, "calibrated", "sweep")
    assert (code, errors) == (0, "")
    assert any(name.endswith("train (texts)") for name in found["same"])
    assert "sweep/sweep.json" not in found["differs"]


def test_what_holds_no_record_is_refused(project_copy: Path, tiny_model: Callable[[str], Path]) -> None:
    run = osrm("verify", tiny_model("bert"), cwd=project_copy)
    assert (run.code, run.error) == (1, f"{tiny_model('bert')} holds no record of osrm")
    run = osrm("verify", "nowhere", cwd=project_copy)
    assert (run.code, run.error) == (1, "nowhere is missing")


def test_text_names_what_differs_and_counts_the_rest(project_copy: Path) -> None:
    flip(project_copy / "starts/mood/adapter_model.safetensors")
    run = osrm("verify", "starts/mood", cwd=project_copy)
    assert run.code == 1
    first, last = run.stdout.splitlines()
    assert first.split()[:3] == ["differs", "file", "starts/mood/adapter_model.safetensors"]
    assert last.endswith("recorded digests are the same")
    os.mkfifo(project_copy / "starts/mood/pipe")  # not recorded, not looked at
    assert osrm("verify", "starts/pair", cwd=project_copy).code == 0
