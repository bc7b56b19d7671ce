"""What is wrong with the data is said by every command that reads it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.run_cli import osrm

ADAPTERS = "adapters/mood adapters/pair"


@pytest.fixture
def data(text_tasks: Path, tmp_path: Path) -> Path:
    """Tasks of which mood is sorted by label, and lacks the label of one row of train."""
    folder = Path(shutil.copytree(text_tasks, tmp_path / "data"))
    for split in ("train", "dev"):
        path = folder / f"mood/{split}.jsonl"
        rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["label"])
        if split == "train":
            rows[-1]["label"] = None
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "eval merged --limit 10",
        f"sweep {ADAPTERS} --lambda 0.5 --limit 10",
        "train starts/mood --dev-limit 10 --limit 8 --epochs 1",
    ],
)
@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_the_first_rows_of_a_sorted_file(project_copy: Path, data: Path, command: str, dry: str) -> None:
    run = osrm(*f"{command}{dry} --out o --data {data}".split(), cwd=project_copy)
    assert run.code == 0, run
    warning = f"warning: {data}/mood/dev.jsonl is sorted by label: its first 10 rows do not stand for all"
    assert warning in run.stderr


@pytest.mark.parametrize("dry", ["", " --dry-run"])
@pytest.mark.parametrize("words", ["--method fisher --samples 8", "--method fisher --samples 8 --calibrate"])
def test_rows_that_a_merge_leaves_out(project_copy: Path, data: Path, words: str, dry: str) -> None:
    run = osrm(*f"merge {ADAPTERS} {words}{dry} --out o --data {data}".split(), cwd=project_copy)
    assert run.code == 0, run
    assert run.stderr.count(f"warning: {data}/mood/train.jsonl: left out 1 of 48 rows without label") == 1


def test_text_that_calibrate_has_read_in_another_encoding(project_copy: Path, data: Path) -> None:
    path = data / "mood/train.jsonl"
    path.write_bytes(path.read_text().replace("w1 ", "caf\u00e9 ").encode("cp1252"))
    run = osrm(*f"calibrate merged --samples 12 --data {data}".split(), cwd=project_copy)
    assert run.code == 0, run
    assert "warning: " in run.stderr
    assert "cp1252" in run.stderr
