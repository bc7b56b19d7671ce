"""Print the tables of ``studies/text-smollm2/README.md`` from the averages beside it.

python -m scripts.text_study_tables
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from scipy import stats

from scripts.study_tables import print_table, spread

STUDY = Path(__file__).resolve().parent.parent / "studies/text-smollm2"
METHODS = ("single", "task-arith", "ties", "tsv", "knots-ties", "dare", "regmean")
DIFFERENCES = (
    ("gevd", "kaiming"),
    ("gevd", "random-orthonormal"),
    ("gevd-penalty-3", "kaiming"),
    ("gevd-penalty-3", "random-orthonormal"),
    ("gevd-penalty-3", "gevd"),
)


def read_averages(path: Path = STUDY / "averages.csv") -> pd.DataFrame:
    """A row for each sweep, arm, seed and method: the average over the tasks on the half that did not select."""
    best = pd.read_csv(path)
    single = best.drop_duplicates(["sweep", "arm", "seed"]).assign(method="single")
    single["test"] = single["single_test"]
    return pd.concat([best, single], ignore_index=True)


def main() -> None:
    """Print all."""
    averages = read_averages()
    for sweep, scores in averages.groupby("sweep", sort=False):
        if sweep == "regmean":
            continue  # a column of the table of "main"
        if sweep == "main":
            regmean = averages[averages["sweep"].eq("regmean") & averages["method"].eq("regmean")]
            scores = pd.concat([scores, regmean])
        methods = [method for method in METHODS if method in set(scores["method"])]
        rows = [
            (str(arm), [spread(own.loc[own["method"] == method, "test"], "not run") for method in methods])
            for arm, own in scores.groupby("arm")
        ]
        by_arm = {method: own.pivot_table("test", "seed", "arm") for method, own in scores.groupby("method")}
        rows += [
            (f"{arm} - {control}", [_difference(by_arm[method], arm, control) for method in methods])
            for arm, control in DIFFERENCES
            if {arm, control} <= set(scores["arm"])
        ]
        print_table(str(sweep), ["adapters", *methods], rows)
    tasks = pd.read_csv(STUDY / "sequential.csv")
    improvement = (tasks["base_loss"] - tasks["merged_loss"]) / (tasks["base_loss"] - tasks["single_loss"])
    tasks["kept"] = 100 * improvement
    columns = ["kept", "single_likelihood", "merged_likelihood"]
    seeds = tasks.groupby(["arm", "seed"])[columns].mean()
    rows = [(str(arm), [spread(own[column]) for column in columns]) for arm, own in seeds.groupby("arm")]
    by_arm = seeds.unstack("arm")
    for arm, control in DIFFERENCES[:2]:
        rows += [(f"{arm} - {control}", [_difference(by_arm[column], arm, control) for column in columns])]
    print_table("sequential", ["adapters", *columns], rows)
    _print_kept_shares("seed 0", _average(_kept_shares(STUDY / "longer.parquet")))
    _print_best_shares()
    before = STUDY / "results.parquet"
    _print_kept_shares("the study before it", _average(_kept_shares(before)))
    _print_kept_shares("each of two tasks", _kept_shares(STUDY / "two-tasks.parquet", before))


def _read_losses(path: Path) -> pd.DataFrame:
    """Mean losses of both halves: a row for each task, a column for each method, arm, seed and lambda."""
    scores = pd.read_parquet(path)
    runs = scores["file"].str.rsplit("/", n=2, expand=True)
    scores["arm"], scores["seed"] = runs[0].str.rpartition("/")[2], runs[1]
    scores["loss"] = scores["metrics"].map(lambda metrics: dict(metrics)["loss"])
    scores["scale"] = scores["options"].map(lambda text: json.loads(text)["lambda"], na_action="ignore").fillna(1)
    scores["method"] = scores["method"].fillna("single")
    return scores.pivot_table("loss", "task", ["method", "arm", "seed", "scale"])


def _kept_shares(path: Path, base_path: Path | None = None) -> pd.DataFrame:
    """What each merge keeps of the single adapters' improvement of the loss, in percent, likewise.

    ``base_path``: scores with merges at lambda 0, which are the base model, if ``path`` has none.
    """
    losses = _read_losses(path)
    base = _read_losses(base_path or path)["task-arith"].xs(0, axis=1, level="scale").mean(axis=1).loc[losses.index]
    runs = losses.columns.droplevel(["method", "scale"])
    single = losses["single"].droplevel("scale", axis=1).reindex(columns=runs)
    shares = 100 * losses.rsub(base, axis=0) / single.rsub(base, axis=0).to_numpy()
    return shares.drop(columns=[column for column in shares if column[0] == "single" or column[3] == 0])


def _average(shares: pd.DataFrame) -> pd.DataFrame:
    """Over the tasks."""
    return shares.mean().to_frame().T


def _print_kept_shares(study: str, shares: pd.DataFrame) -> None:
    """At each lambda: of several numbers in ``shares``, a comma between them."""
    by_point = shares.T.groupby(level=["arm", "method", "scale"])
    cells = {point: ", ".join(f"{share:.0f}" for share in own.to_numpy().ravel()) for point, own in by_point}
    points = sorted({(METHODS.index(method), scale) for _, method, scale in cells})
    columns = [f"{METHODS[method]} {scale:g}" for method, scale in points]
    arms = list(dict.fromkeys(arm for arm, _, _ in cells))
    rows = [(arm, [cells.get((arm, METHODS[method], scale), "") for method, scale in points]) for arm in arms]
    print_table(f"kept of the improvement of the loss, {study}", ["adapters", *columns], rows)


def _print_best_shares() -> None:
    shares = _kept_shares(STUDY / "longer.parquet").droplevel("seed", axis=1)
    averages = shares.mean()
    best = {pair: own.idxmax() for pair, own in averages.groupby(level=["method", "arm"])}
    methods = [method for method in METHODS if method in averages.index]
    arms = averages.index.unique("arm")
    rows = [
        (arm, [f"{averages[best[method, arm]]:.1f} at {best[method, arm][2]:g}" for method in methods]) for arm in arms
    ]
    for arm, control in DIFFERENCES[:2]:
        chosen = [{name: shares[best[method, name]] for name in (arm, control)} for method in methods]
        rows += [(f"{arm} - {control}", [_difference(pair, arm, control) for pair in chosen])]
    print_table("kept at the best lambda, seed 0", ["adapters", *methods], rows)


def _difference(scores: Mapping[str, pd.Series], arm: str, control: str) -> str:
    """Mean of the paired differences, with its 95 % interval by Student's t.

    ``scores``: by arm, a number for each seed, or for each task.
    """
    gain = scores[arm] - scores[control]
    low, high = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    return f"{gain.mean():+.1f} ({low:+.1f}, {high:+.1f})"


if __name__ == "__main__":
    main()
