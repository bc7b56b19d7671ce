"""The tables of results and studies are what ``osrm report`` says of the committed scores."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from osrm_cli.reporting.write import write_report
from scripts.study_tables import spread
from tests.reporting.tables import COLUMNS, read_table
from tests.run_cli import ROOT

pytestmark = pytest.mark.slow


def reported_rows(table: str, baselines: tuple[str, ...], out: Path, only: Sequence[str] = ()) -> list[dict[str, str]]:
    """By method: the averages of each arm, and its differences from each baseline, as the documents write them."""
    found: dict[str, dict[str, str]] = {}
    for baseline in baselines:
        for cell in write_report([ROOT / table], only=only, baseline=baseline, out=out, dry_run=True).record["rows"]:
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
            "studies/text-smollm2/small.parquet",
            ("kaiming", "random-orthonormal"),
        ),
        (
            "studies/text-smollm2/README.md",
            "Two tasks alone",
            "studies/text-smollm2/small-two-tasks.parquet",
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


def test_intervals_over_seeds_and_tasks_of_writers(tmp_path: Path) -> None:
    """Of the best penalty, in the order of the methods."""
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    paragraph = page.partition("Over pairs of seed and task")[2].partition("\n\n")[0]
    said = re.findall(r"[+-]\d+\.\d \(\S+, \S+\)", paragraph)
    table, only = "studies/text-smollm2/results.parquet", ("sweeps/*",)
    rows = reported_rows(table, ("kaiming", "random-orthonormal"), tmp_path / "report", only)
    known = [[row[method] for method in ("task-arith", "ties", "tsv")] for row in rows if "task-arith" in row]
    assert said[:3] in known
    assert said[3:] in known
    assert len(said) == 6


@pytest.fixture(scope="module")
def whole_weights() -> pd.DataFrame:
    """Scores of the study of whole weights on the half that did not select, a row for each task and point."""
    scores = pd.read_parquet(ROOT / "studies/full-minilm/results.parquet").query("headline.notna() and part == 'test'")
    runs = scores["file"].str.split("/", expand=True)
    scale = scores["options"].map(lambda text: json.loads(text)["lambda"], na_action="ignore")
    return scores.assign(run=runs[0], seed=runs[1], scale=scale, method=scores["method"].fillna("single"))


def test_averages_of_whole_weights_over_lambda(whole_weights: pd.DataFrame) -> None:
    _, *rows = read_table("studies/full-minilm/README.md", "Over lambda")
    averages = whole_weights.groupby(["run", "method", "scale", "seed"])["headline"].mean()
    points = [(method, scale) for method in ("task-arith", "ties", "tsv") for scale in (0.3, 0.6, 1.0)]
    known = [[spread(own.droplevel("run").loc[point]) for point in points] for _, own in averages.groupby("run")]
    assert sorted(cells for _, *cells in rows) == sorted(known)


def test_every_task_of_whole_weights(whole_weights: pd.DataFrame) -> None:
    (_, _, *tasks), *rows = read_table("studies/full-minilm/README.md", "Every task")
    best = whole_weights[whole_weights["chosen"].eq(True) | whole_weights["method"].eq("single")]
    known = [
        (str(method), [spread(own.loc[own["task"] == task, "headline"]) for task in tasks])
        for (_, method), own in best.groupby(["run", "method"])
    ]
    assert sorted((COLUMNS[method], cells) for _, method, *cells in rows) == sorted(known)
