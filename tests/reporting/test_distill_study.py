"""The tables of the study of distilling are what its script prints."""

import re
import subprocess
import sys

import pytest

from tests.reporting.tables import read_arms, read_table
from tests.run_cli import ROOT

STUDY = ROOT / "studies/distill-minilm/README.md"
SETTINGS = {
    "128 texts, rank 64: the default": ("rate 2.5e-4", "default", "default"),
    "texts of a mixture of three tasks": ("texts of three tasks",),
    "texts of another task": ("texts of another task",),
    **{f"`--samples {count}`": (f"{count} texts",) * 3 for count in (16, 64, 512)},
    **{f"`--rank {rank}`": (f"rank {rank}",) * 3 for rank in (8, 16, 32)},
}
ARMS = {"`gevd`": "gevd-penalty-3", "plain LoRA": "kaiming-native", "control": "random-orthonormal"}


@pytest.fixture(scope="module")
def output() -> str:
    """What the script prints."""
    words = [sys.executable, "-m", "scripts.distill_tables"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture(scope="module")
def tables(output: str) -> dict[str, dict[str, list[str]]]:
    """Its tables by title, their cells by the names of rows."""
    return {title: read_arms(output, title) for title in re.findall(r"^(.+)\n\n\|", output, flags=re.M)}


def test_the_study_s_page_has_every_row(output: str) -> None:
    printed = [line for line in output.splitlines() if line.startswith("|")]
    assert len(printed) > 80
    assert [line for line in STUDY.read_text(encoding="utf-8").splitlines() if line.startswith("|")] == printed


def test_every_average_in_the_documents_is_printed_by_the_script(tables: dict[str, dict[str, list[str]]]) -> None:
    _, *rows = read_table("docs/results.md", "**Eight GLUE tasks in one model, three seeds**")
    known = [_numbers(cells) for arm in ARMS.values() for cells in tables[arm].values()]
    assert len(rows) == 10
    assert not [cells for _, *cells in rows if _numbers(cells) not in known]


def test_texts_and_ranks_are_those_of_their_arms(tables: dict[str, dict[str, list[str]]]) -> None:
    _, *rows = read_table("docs/results.md", "**Texts and ranks**")
    assert sorted(name for name, *_ in rows) == sorted(SETTINGS)
    for name, *cells in rows:
        wanted = [tables[arm][setting][3:5] for arm, setting in zip(ARMS.values(), SETTINGS[name], strict=False)]
        missing = [["not run", ""]] * (len(ARMS) - len(wanted))
        assert cells == [cell for pair in wanted + missing for cell in pair], name


def test_differences_of_starts_are_the_script_s(tables: dict[str, dict[str, list[str]]]) -> None:
    _, *rows = read_table("docs/results.md", "**Does the start still matter?**")
    controls = [tables[f"`gevd` - {control}"] for control in ("control", "plain LoRA")]
    assert len(rows) == 7
    for name, *cells in rows:
        setting = SETTINGS[name][-1]
        assert cells == [table[setting][column] for table in controls for column in (1, 3)], name


def test_other_methods_are_printed_by_the_script(tables: dict[str, dict[str, list[str]]]) -> None:
    """Means, calibrated: a row for each method and arm, a column for each number of texts and rank."""
    header, *rows = read_table("docs/results.md", "**Other methods, by texts and ranks**")
    others = tables["Other methods, percent kept"]
    assert len(rows) == 15
    for name, *cells in rows:
        method, _, arm = name.rpartition(", ")
        for column, cell in zip(header[1:], cells, strict=True):
            if cell:
                assert cell == _kept(tables, others, method, arm, column), (name, column)


def _kept(
    tables: dict[str, dict[str, list[str]]], others: dict[str, list[str]], method: str, arm: str, column: str
) -> str:
    method, _, features = method.replace("`", "").partition(" with ")
    if method == "distill":
        cells = tables[ARMS[arm]]
        setting = column if column in cells else "default" if "default" in cells else "rate 2.5e-4"
        kept = cells[setting][4]
    else:
        setting = method if column == "128 texts" else f"{method}, {column}" + ", by features" * bool(features)
        kept = others[setting][3 + list(ARMS).index(arm)]
    return kept.partition(" ±")[0]


def _numbers(cells: list[str]) -> list[str]:
    """The cells with a deviation, without the single adapters' own 100 %."""
    return [cell for cell in cells if "±" in cell and not cell.startswith("100.0")]
