"""The tables of the study of distilling are what its script prints."""

import subprocess
import sys

import pytest

from tests.run_cli import ROOT

STUDY = ROOT / "studies/distill-minilm/README.md"


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """The rows that the script prints."""
    words = [sys.executable, "-m", "scripts.distill_tables"]
    output = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return [line for line in output.splitlines() if "±" in line]


def test_the_study_s_page_has_every_row(printed: list[str]) -> None:
    assert len(printed) > 30
    assert [line for line in STUDY.read_text(encoding="utf-8").splitlines() if "±" in line] == printed


def test_every_average_in_the_documents_is_printed_by_the_script(printed: list[str]) -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    section = page.partition("**Eight GLUE tasks in one model, three seeds**")[2]
    section, _, later = section.partition("**Texts and ranks**")
    rows = [_numbers(line) for line in section.splitlines() if line.startswith("|") and "±" in line]
    assert len(rows) == 10
    known = [_numbers(line) for line in printed]
    assert not [row for row in rows if row not in known]
    rows = [_numbers(line) for line in later.partition("**Beside")[0].splitlines() if "±" in line]
    assert len(rows) == 9
    calibrated = [row[-3:] for row in known]
    assert not [row for row in rows if row[:3] not in calibrated or row[3:] not in (*calibrated, [])]


def _numbers(line: str) -> list[str]:
    """The cells with a deviation, without the name, bold and the single adapters' own 100 %."""
    cells = line.replace("**", "").strip("| ").split(" | ")[1:]
    return [cell for cell in cells if "±" in cell and not cell.startswith("100.0")]
