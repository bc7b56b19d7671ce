"""Print the tables of ``studies/text-smollm2/README.md`` from the averages beside it.

python -m scripts.text_study_tables
"""

from pathlib import Path

import pandas as pd

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
        rows += [
            (f"{arm} - {control}", [_difference(scores, method, arm, control) for method in methods])
            for arm, control in DIFFERENCES
            if {arm, control} <= set(scores["arm"])
        ]
        print_table(str(sweep), ["adapters", *methods], rows)
    tasks = pd.read_csv(STUDY / "sequential.csv")
    improvement = (tasks["base_loss"] - tasks["merged_loss"]) / (tasks["base_loss"] - tasks["single_loss"])
    tasks["kept"] = 100 * improvement
    columns = ["kept", "single_likelihood", "merged_likelihood"]
    seeds = tasks.groupby(["arm", "seed"])[columns].mean()
    print_table("sequential", ["adapters", *columns], (
        (str(arm), [spread(own[column]) for column in columns]) for arm, own in seeds.groupby("arm")
    ))  # fmt: skip


def _difference(scores: pd.DataFrame, method: str, arm: str, control: str) -> str:
    """Mean over the seeds of the difference, the smallest and the largest."""
    own = scores[scores["method"] == method].pivot_table("test", "seed", "arm")
    gain = own[arm] - own[control]
    return f"{gain.mean():+.1f} ({gain.min():+.1f} to {gain.max():+.1f})"


if __name__ == "__main__":
    main()
