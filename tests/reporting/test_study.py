"""The study's page says what its table of scores says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from osrm_cli.reporting.write import write_report
from tests.reporting.tables import read_table
from tests.run_cli import ROOT

STUDY = ROOT / "studies/glue-minilm"
TABLE = STUDY / "results.parquet"
COLUMNS = ("single", "task-arith", "ties", "tsv", "regmean", "fisher", "emr")


def page_lines() -> list[str]:
    """The page without its section of five seeds, which ``test_five_seeds.py`` compares."""
    before, _, section = (STUDY / "README.md").read_text(encoding="utf-8").partition("\n## Five seeds\n")
    return (before + "\n## " + section.partition("\n## ")[2]).splitlines()


def page_rows(name: str) -> list[list[str]]:
    """The cells of the page's rows that begin so."""
    return [line.strip("| ").split(" | ")[1:] for line in page_lines() if line.startswith(f"| {name}")]


@pytest.mark.parametrize(
    ("baseline", "objective", "row"),
    [
        ("kaiming-native-fresh", "kaiming", "ours - plain LoRA"),
        ("official-fresh", "official", "ours - OSRM as published"),
        ("random-orthonormal", "random-orthonormal", "ours - control"),
    ],
)
def test_the_page_s_intervals_are_those_of_its_table(baseline: str, objective: str, row: str, tmp_path: Path) -> None:
    only = [f"sweeps/table1{part}/{arm}" for part in ("", "-rules", "-tsv") for arm in ("gevd-penalty-3", baseline)]
    result = write_report([TABLE], only=only, baseline=objective, out=tmp_path / "report", dry_run=True)
    ours = {cell["row"]: cell for cell in result.record["rows"] if cell["arm"].startswith("gevd")}
    (cells,) = page_rows(row)
    for kind, cell in zip(COLUMNS, cells, strict=True):
        difference = ours[kind]["difference"]
        low, high = difference["interval"]
        assert cell == f"{difference['mean']:+.1f} ({low:+.1f}, {high:+.1f})"
    (means,) = page_rows("ours: `gevd`, fitted head")
    assert means == [f"{ours[kind]['average']['mean']:.1f} ± {ours[kind]['average']['sd']:.1f}" for kind in COLUMNS]


def test_every_other_number_of_the_page_s_tables_is_printed_by_its_script() -> None:
    script = ROOT / "scripts/study_tables.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    known = {_numbers(line) for line in printed.splitlines() if line.startswith("| ")}
    methods = dict(re.findall(r"^\| (\S+) \| (\S+ \(\S+\)) \|$", printed, flags=re.M))
    lines = page_lines()
    checked = 0
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        scores = re.findall(r"((?:`[\w+-]+`(?:, )?)+)[^|]*\| (\d+\.\d \(\d\.\d\))", line)
        is_row = line.startswith("| ") and not below.startswith("| ---") and re.search(r"\d", line.partition(" | ")[2])
        if scores:
            for names, score in scores:
                assert {methods[name] for name in re.findall(r"`(.+?)`", names)} == {score}
        elif is_row and not line.startswith(("| ours - ", "| `adamerging`")):
            assert _numbers(line) in known, line
        checked += bool(scores or is_row)
    assert checked > 80
    assert methods["adamerging"] == "47.0 (0.3)"


def test_the_averages_of_every_initialization_are_the_page_s() -> None:
    """Its columns up to RegMean are the page's, from the left."""
    known = [line.replace("**", "").strip("| ").split(" | ")[1:] for line in page_lines() if line.startswith("| ")]
    _, *rows = read_table("docs/results.md", "## Every initialization")
    assert len(rows) == 10
    for _, *cells in rows:
        assert cells in [own[: len(cells)] for own in known], cells


def _numbers(line: str) -> tuple[str, ...]:
    return tuple(re.findall(r"-?\d+(?:\.\d+)?(?: ± [\d.]+| of [\d.]+)?", " | ".join(line.strip("| ").split(" | ")[1:])))


def test_the_table_is_small_and_alone() -> None:
    assert TABLE.stat().st_size < 3_000_000
    names = sorted(path.name for path in STUDY.iterdir())
    assert len([name for name in names if name.endswith(".png")]) <= 5
    assert {Path(name).suffix for name in names} == {".md", ".png", ".parquet", ".csv"}
