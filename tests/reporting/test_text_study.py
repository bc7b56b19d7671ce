"""The tables of the study of writers are what its script prints."""

import re
import subprocess
import sys

import pytest

from tests.reporting.tables import COLUMNS, read_arms, read_table
from tests.run_cli import ROOT

NUMBER = re.compile(r"[+-]?\d+\.\d")
ARMS = {
    "plain LoRA": "kaiming",
    "control": "random-orthonormal",
    "`gevd`": "gevd",
    "`gevd`, penalty 3": "gevd-penalty-3",
    "`gevd`, penalty 10": "gevd-penalty-10",
    "`gevd` - plain LoRA": "gevd - kaiming",
    "`gevd` - control": "gevd - random-orthonormal",
    "penalty 10 - plain LoRA": "gevd-penalty-10 - kaiming",
    "penalty 10 - control": "gevd-penalty-10 - random-orthonormal",
    "penalty 10 - `gevd`": "gevd-penalty-10 - gevd",
}
MODELS = {"single": "single", "task-arith 0.5": "task-arith", "TSV 0.7": "tsv", "RegMean": "regmean"}


@pytest.fixture(scope="module")
def output() -> str:
    """What the script prints."""
    words = [sys.executable, "-m", "scripts.text_study_tables"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture(scope="module")
def printed(output: str) -> list[list[str]]:
    """The cells of all rows that the script prints, without their names."""
    return read_rows(output)


def read_rows(text: str) -> list[list[str]]:
    """The cells of the table rows that hold averages, without their names and without bold."""
    rows = [line.replace("**", "").replace(" % |", " |").strip("| ").split(" | ")[1:] for line in text.splitlines()]
    return [row for row in rows if row and NUMBER.match(row[0])]


def read_printed(output: str, title: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of what is kept."""
    table = output.partition(f"kept of the improvement of the loss, {title}\n\n")[2].partition("\n\n")[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return header, rows


def test_every_average_in_the_documents_is_printed_by_the_script(printed: list[list[str]]) -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    section = page.partition("## Tasks that are answered with text")[2].partition("**[`osrm diagnose`]")[0]
    before, _, after = section.partition("**What the merged models write**")
    section = before + after.partition("The other starts")[2]
    later = page.partition("**Trained ten times as long, three seeds**")[2].partition("\n## ")[0]
    rows = read_rows(section + later)
    assert len(rows) > 20
    both = [two + four for two in printed for four in printed]  # two tasks beside four in one row
    assert not [row for row in rows if row not in printed and row not in both]


def test_the_readme_s_averages_are_printed_by_the_script(printed: list[list[str]]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("| **Six writers** |")[2]
    rows = read_rows(readme.partition("Nearly as good")[0])
    assert len(rows) == 5
    assert not [row for row in rows if row not in [[*cells[:4], cells[-1]] for cells in printed]]


def test_rows_of_the_main_table_are_those_of_their_arms(output: str) -> None:
    """An average beside another arm's name would be printed by the script as well."""
    arms = read_arms(output, "main")
    _, *rows = read_table("docs/results.md", "## Tasks that are answered with text")
    assert len(rows) == len(ARMS)
    for name, *cells in rows:
        assert cells == arms[ARMS[re.sub(r": `(kaiming|random-orthonormal)`", "", name)]], name
    _, *lines = read_table("README.md", "## What it gains")
    writers = lines[[line[0] for line in lines].index("Six writers") + 1 :]
    ours = [f"gevd-penalty-10{rest}" for rest in ("", " - kaiming", " - random-orthonormal")]
    order = ["kaiming", "random-orthonormal", *ours]
    assert [cells for _, *cells in writers] == [[*arms[arm][:4], arms[arm][-1]] for arm in order]


def test_what_is_written_is_printed_by_the_script(output: str) -> None:
    """ROUGE-L with its deviation or interval, and in brackets the mean of exact matches; below, ROUGE-L by task."""
    rouge, exact = (read_arms(output, f"written, {metric}") for metric in ("rouge_l", "exact_match"))
    _, *rows = read_table("docs/results.md", "**What the merged models write**")
    assert len(rows) == len(ARMS) - 1
    for name, *cells in rows:
        scores, matches = rouge[ARMS[name]], [cell.partition(" ±")[0] for cell in exact[ARMS[name]]]
        both = [f"{score} ({match})" for score, match in zip(scores, matches, strict=True)]
        assert cells == (scores if " - " in name else both), name
    by_task = read_arms(output, "written, rouge_l, by task")
    _, *rows = read_table("docs/results.md", "By task, ROUGE-L, mean over the seeds")
    assert len(rows) == 16
    for name, model, *cells in rows:
        assert cells == by_task[f"{ARMS[name]}, {MODELS[model]}"], (name, model)


@pytest.mark.parametrize(
    ("page", "after", "title"),
    [
        ("docs/results.md", "Of the single adapters' improvement of the loss", "three seeds"),
        ("studies/text-smollm2/README.md", "Of the single adapters' improvement of the loss", "the study before it"),
    ],
)
def test_every_share_that_is_kept_is_printed_by_the_script(page: str, after: str, title: str, output: str) -> None:
    header, *rows = read_table(page, after)
    method, points = "", []
    for name in header[1:]:
        method, _, scale = name.rpartition(" ") if " " in name else (method, "", name)
        method = method or name
        points.append(f"{COLUMNS.get(method, method)} {float(scale):g}" if scale[0].isdigit() else "")
    columns, known = read_printed(output, title)
    assert len(rows) in (3, 5)
    for _, *cells in rows:
        pairs = {(point, cell) for point, cell in zip(points, cells, strict=True) if point}
        assert len(pairs) > 7
        assert [own for own in known if pairs <= set(zip(columns, own, strict=True))], cells


def test_what_is_kept_of_two_tasks_is_printed_by_the_script(output: str) -> None:
    """At the lambda that each arm's other half selects, which ``test_report_tables.py`` compares by the likelihood."""
    _, *rows = read_table("studies/text-smollm2/README.md", "Two tasks alone")
    columns, known = read_printed(output, "each of two tasks")
    assert len(rows) == 4
    for _, _, _, arith, _, tsv in rows:
        wanted = {("task-arith", arith.removesuffix(" %")), ("tsv", tsv.removesuffix(" %"))}
        pairs = [{(column.partition(" ")[0], cell) for column, cell in zip(columns, own, strict=True)} for own in known]
        assert [own for own in pairs if wanted <= own], wanted


def test_intervals_of_what_is_kept_are_the_script_s(output: str) -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    paragraph = text.partition("with a paired 95 % interval over the six tasks")[2].partition("\n\n")[0]
    said = re.findall(r"[+-]\d+\.\d \(\S+, \S+\)", paragraph)
    best = output.partition("kept at the best lambda")[2].partition("kept of the")[0]
    known = [line.strip("| ").split(" | ")[1:] for line in best.splitlines() if " - " in line]
    assert len(said) == 6
    assert said[:3] in [row[:3] for row in known]
    assert said[3:] in [row[:3] for row in known]


def test_what_diagnose_predicts_is_the_script_s(output: str) -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    paragraph = " ".join(
        text.partition("**[`osrm diagnose`](guides/diagnose.md)** predicts here")[2].partition("\n\n")[0].split()
    )
    rows = output.partition("predicted and measured drops of pairs")[2].partition("kept of the")[0].splitlines()
    found = {cells[0]: cells[1:] for line in rows[4:] if len(cells := line.strip("| ").split(" | ")) == 5}
    names = {"kaiming": "plain LoRA", "random-orthonormal": "the control", "gevd": "`gevd`"}
    assert found.keys() == names.keys()
    for arm, (rho, _, n, energies) in found.items():
        assert f"{rho} for {names[arm]}" in paragraph
        assert f"{energies} for {names[arm]}" in paragraph
        assert n == "30"
