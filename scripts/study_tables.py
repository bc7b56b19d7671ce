"""Print the tables of ``studies/glue-minilm/README.md`` from the scores beside it.

    python scripts/study_tables.py

Intervals come from ``osrm report``, as the page says; all other numbers are these.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

STUDY = Path(__file__).resolve().parent.parent / "studies/glue-minilm"
LAMBDAS = (0.3, 0.5, 0.7, 1.0)
RULES = ("single", "task-arith", "ties", "tsv", "regmean", "fisher", "emr")


def read_averages(path: Path = STUDY / "results.parquet") -> pd.DataFrame:
    """Averages over the tasks, a row for each merge: on each half of the examples, and on both."""
    scores = pd.read_parquet(path).query("headline.notna()")
    scores["method"] = scores["method"].fillna("single")
    scores["scale"] = scores["options"].map(lambda text: json.loads(text)["lambda"], na_action="ignore").fillna(0.0)
    flags = {name: scores[name].eq(True) for name in ("calibrated", "chosen")}
    keys = ["file", "point", "method", "calibrated", "chosen", "scale"]
    scores = scores.assign(point=scores["point"].fillna(-1), **flags)
    halves = scores.pivot_table("headline", keys, "part", aggfunc="mean").reset_index()
    parts = halves["file"].str.rsplit("/", n=4, expand=True)
    names = {"sweep": parts[1], "adapters": parts[2], "seed": parts[3]}
    return halves.assign(both=(halves["test"] + halves["validation"]) / 2, **names)


def read_drifts(path: Path = STUDY / "results.parquet") -> pd.Series:
    """By file: how far training moved A, in percent, as the mean of the tasks."""
    adapters = pd.read_parquet(path, columns=["file", "adapter"]).dropna()
    drift = adapters["adapter"].map(lambda text: json.loads(text)["drift"])
    return 100 * drift.astype(float).groupby(adapters["file"]).mean()


def print_table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """A Markdown table."""
    print(f"\n{title}\n", f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |", sep="\n")
    for name, cells in rows:
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: pd.Series, missing: str = "") -> str:
    """Mean, and the standard deviation over several seeds; ``missing`` where there are no values."""
    if not len(values):
        return missing
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def paired_difference(scores: Mapping[str, pd.Series], arm: str, control: str) -> str:
    """Mean of the paired differences, with its 95 % interval by Student's t.

    ``scores``: by arm, a number for each seed, or for each task.
    """
    gain = scores[arm] - scores[control]
    low, high = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    return f"{gain.mean():+.1f} ({low:+.1f}, {high:+.1f})"


def main() -> None:
    """Print all."""
    averages, drifts = read_averages(), read_drifts()
    table1 = averages[averages["file"].str.startswith("sweeps/table1")]
    plain = table1[(table1["chosen"] | table1["method"].eq("single")) & ~table1["calibrated"]]
    plain = plain.drop_duplicates(["adapters", "seed", "method"])
    for title, wanted in (("All seeds", plain), ("Seed 0", plain[plain["seed"] == "0"])):
        print_table(title, ["adapters", *RULES], (
            (name, [spread(rows.loc[rows["method"] == rule, "test"]) for rule in RULES])
            for name, rows in wanted.groupby("adapters")
        ))  # fmt: skip
    arith = table1[table1["method"] == "task-arith"]
    print_table("Task arithmetic at each lambda", ["adapters", *map(str, LAMBDAS)], (
        (name, [spread(rows.loc[rows["scale"] == scale, "test"]) for scale in LAMBDAS])
        for name, rows in arith.groupby("adapters") if rows["seed"].nunique() > 1
    ))  # fmt: skip
    first = averages[(averages["seed"] == "0") & averages["sweep"].isin(["two", "four", "six", "table1"])]
    print_table("With the number of tasks", ["adapters", "two", "four", "six", "eight"], (
        (name, [_kept(rows[rows["sweep"] == sweep]) for sweep in ("two", "four", "six", "table1")])
        for name, rows in first.groupby("adapters") if rows["sweep"].nunique() > 1
    ))  # fmt: skip
    for title, folder, single in (
        ("With calibrated heads", "sweeps/calibrated/", False),
        ("Every start", "sweeps/(?:five|qkv)/", True),
        ("The first try", "fixed-heads/", True),
    ):
        rows = averages[averages["file"].str.match(folder)]
        columns = [*["single"] * single, *(["TA 0.3", "0.5", "0.7", "1.0", "RegMean"] * 2), *["drift of A"] * single]
        print_table(title, ["adapters", *columns], (
            (name, _calibrated(own, drifts, single)) for name, own in rows.groupby("adapters")
        ))  # fmt: skip
    methods = averages["file"].str.startswith("methods/") & averages["method"].ne("single")
    best = averages[methods].sort_values("both", ascending=False)
    print_table("Every method", ["method", "average (lambda)"], (
        (row.method, [f"{row.both:.1f} ({row.scale:.1f})"])
        for row in best.drop_duplicates("method").itertuples()
    ))  # fmt: skip


def _kept(rows: pd.DataFrame) -> str:
    merged, single = (rows.loc[rows["method"] == method, "both"].max() for method in ("task-arith", "single"))
    return f"{merged:.1f} of {single:.1f}"


def _calibrated(rows: pd.DataFrame, drifts: pd.Series, single: bool) -> list[str]:
    """Single, then task arithmetic over lambda and RegMean at its best, without and with calibrated heads; drift."""
    cells = [f"{rows.loc[rows['method'] == 'single', 'both'].mean():.1f}"] if single else []
    for calibrated in (False, True):
        own = rows[rows["calibrated"] == calibrated]
        arith, regmean = own[own["method"] == "task-arith"], own[own["method"] == "regmean"]
        cells += [f"{arith.loc[arith['scale'] == scale, 'both'].mean():.1f}" for scale in LAMBDAS]
        cells.append(f"{regmean['both'].max():.1f}")
    return [*cells, f"{drifts[rows['file'].iloc[0]]:.0f} %"] if single else cells


if __name__ == "__main__":
    main()
