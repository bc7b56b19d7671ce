"""The tables of the study of writers are what its script prints."""

import re
import subprocess
import sys

import pytest

from tests.run_cli import ROOT

NUMBER = re.compile(r"[+-]?\d+\.\d")


@pytest.fixture(scope="module")
def printed() -> list[list[str]]:
    """The cells of all rows that the script prints, without their names."""
    words = [sys.executable, "-m", "scripts.text_study_tables"]
    output = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return read_rows(output)


def read_rows(text: str) -> list[list[str]]:
    """The cells of the table rows that hold averages, without their names and without bold."""
    rows = [line.replace("**", "").replace(" % |", " |").strip("| ").split(" | ")[1:] for line in text.splitlines()]
    return [row for row in rows if row and NUMBER.match(row[0])]


def test_every_average_in_the_documents_is_printed_by_the_script(printed: list[list[str]]) -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    section = page.partition("## Tasks that are answered with text")[2].partition(
        "Of the single adapters' improvement"
    )[0]
    later = page.partition("**Trained ten times as long, three seeds**")[2].partition("\n## ")[0]
    rows = read_rows(section + later)
    assert len(rows) > 20
    both = [two + four for two in printed for four in printed]  # two tasks beside four in one row
    assert not [row for row in rows if row not in printed and row not in both]


def test_the_readme_s_averages_are_printed_by_the_script(printed: list[list[str]]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("**Adapters that write** have no head")[2]
    rows = read_rows(readme.partition("**Nearly as good")[0])
    assert len(rows) == 5
    assert not [row for row in rows if row not in [[*cells[:4], cells[-1]] for cells in printed]]
