"""The tables of results and studies are what ``osrm report`` says of the committed scores."""

import re
from pathlib import Path

import pytest

from osrm_cli.reporting.write import write_report
from tests.reporting.tables import COLUMNS, read_table
from tests.run_cli import ROOT

pytestmark = pytest.mark.slow


def reported_rows(table: str, baselines: tuple[str, ...], out: Path) -> list[dict[str, str]]:
    """By method: the averages of each arm, and its differences from each baseline, as the documents write them."""
    found: dict[str, dict[str, str]] = {}
    for baseline in baselines:
        for cell in write_report([ROOT / table], baseline=baseline, out=out, dry_run=True).record["rows"]:
            average, difference = cell["average"], cell["difference"]
            spread = "" if average["sd"] is None else f" ± {average['sd']:.1f}"
            found.setdefault(cell["arm"], {})[cell["row"]] = f"{average['mean']:.1f}{spread}"
            if difference:
                low, high = difference["interval"]
                words = f"{difference['mean']:+.1f} ({low:+.1f}, {high:+.1f})"
                found.setdefault(f"{cell['arm']} - {baseline}", {})[cell["row"]] = words
    return list(found.values())


@pytest.mark.parametrize(
    ("page", "after", "table", "baselines"),
    [
        ("studies/full-minilm/README.md", "Averages in percent", "studies/full-minilm/results.parquet", ("full",)),
        ("docs/results.md", "## Whole weights", "studies/full-minilm/results.parquet", ("full",)),
        (
            "studies/text-smollm2/README.md",
            "Likelihood per token of the reference completion",
            "studies/text-smollm2/results.parquet",
            ("kaiming", "random-orthonormal"),
        ),
        (
            "studies/text-smollm2/README.md",
            "Two tasks alone",
            "studies/text-smollm2/two-tasks.parquet",
            ("random-orthonormal",),
        ),
    ],
)
def test_a_table_is_the_report_s(page: str, after: str, table: str, baselines: tuple[str, ...], tmp_path: Path) -> None:
    header, *rows = read_table(page, after)
    known = reported_rows(table, baselines, tmp_path / "report")
    places = {COLUMNS[name]: index for index, name in enumerate(header) if name in COLUMNS}
    assert len(places) > 2
    assert len(rows) > 3
    for row in rows:
        cells = {method: row[index] for method, index in places.items() if row[index] != "not run"}
        assert [each for each in known if each.items() >= cells.items()], row


def test_intervals_over_the_tasks_of_the_longer_study(tmp_path: Path) -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    paragraph = text.partition("Of the likelihood, with 95 % bootstrap intervals over the tasks")[2].partition("\n\n")[
        0
    ]
    said = re.findall(r"[+-]\d+\.\d \(\S+, \S+\)", paragraph)
    assert len(said) == 6
    rows = reported_rows("studies/text-smollm2/longer.parquet", ("random-orthonormal", "kaiming"), tmp_path / "report")
    known = [[row[method] for method in ("task-arith", "ties", "tsv")] for row in rows if "task-arith" in row]
    assert said[:3] in known
    assert said[3:] in known
