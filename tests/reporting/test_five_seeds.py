"""The tables of the study's five seeds are what their script prints."""

import subprocess
import sys

import pytest

from tests.reporting.tables import read_arms, read_table
from tests.run_cli import ROOT

STUDY = ROOT / "studies/glue-minilm"
TABLES = ("Five seeds", "Task arithmetic at each lambda, five seeds", "Ways to train, seed 0")


@pytest.fixture(scope="module")
def output() -> str:
    """What the script prints."""
    words = [sys.executable, "-m", "scripts.five_seeds_tables"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_section_has_every_row_and_no_other(output: str) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8").partition("\n## Five seeds\n")[2].partition("\n## ")[0]
    printed = [line for line in output.splitlines() if line.startswith("|")]
    assert len(printed) == 53
    assert [line for line in page.splitlines() if line.startswith("|")] == printed


@pytest.mark.parametrize(
    ("page", "after", "title", "count"),
    [
        ("docs/results.md", "# Results", TABLES[0], 7),
        ("docs/results.md", "Task arithmetic at each lambda:", TABLES[1], 7),
        ("docs/results.md", "## Ways to train", TABLES[2], 14),
        ("README.md", "## What it gains", TABLES[0], 6),
    ],
)
def test_rows_of_other_documents_are_the_script_s_by_name(
    page: str, after: str, title: str, count: int, output: str
) -> None:
    header, *rows = read_table(page, after)
    rows = rows[_index(rows, "Eight classifiers") + 1 : _index(rows, "Six writers")] if page == "README.md" else rows
    known = read_arms(output, title)
    assert len({name for name, *_ in rows}) == count
    assert header[1:] == read_columns(output, title)
    for name, *cells in rows:
        assert cells == known[name], name


def read_columns(output: str, title: str) -> list[str]:
    """The names of the columns of one of the script's tables, without the first."""
    line = output.partition(f"\n{title}\n\n")[2].partition("\n")[0]
    return line.strip("| ").split(" | ")[1:]


def _index(rows: list[list[str]], name: str) -> int:
    return [row[0] for row in rows].index(name)


def test_what_the_page_says_of_its_intervals_is_the_table_s(output: str) -> None:
    """The deviations and the half widths of ours - control, in words."""
    text = " ".join((STUDY / "README.md").read_text(encoding="utf-8").split())
    deviations = read_arms(output, "ours - control in each seed")["deviation over the seeds"][1:]
    differences = read_arms(output, TABLES[0])["ours - control"][1:]
    ends = [cell.partition("(")[2].strip(")").split(", ") for cell in differences]
    halves = [(float(high) - float(low)) / 2 for low, high in ends]
    *first, last = deviations
    assert f"deviations of {', '.join(first)} and {last} points" in text
    said = text.partition("points and intervals of ")[2].partition(", so that")[0].replace(" and ", ", ").split(", ")
    assert [float(number.strip("±")) for number in said] == pytest.approx(halves, abs=0.1)
