"""Print the tables of the section "Five seeds" of ``studies/glue-minilm/README.md`` from the scores beside it.

python -m scripts.five_seeds_tables
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from scripts.study_tables import LAMBDAS, STUDY, paired_difference, print_table, spread

RULES = {"single": "single", "task-arith": "task-arith", "ties": "TIES", "tsv": "TSV", "regmean": "RegMean"}
SCALES = {f"task-arith {scale}": str(scale) for scale in LAMBDAS}
OURS, CONTROL, PLAIN, PUBLISHED = "gevd-penalty-3", "random-orthonormal", "kaiming-native-fresh", "official-fresh"
MAIN = {
    PLAIN: "plain LoRA: PEFT's defaults",
    PUBLISHED: "OSRM as published",
    CONTROL: "control: random orthonormal A, fitted head",
    OURS: "ours: `gevd`, fitted head, penalty 3",
}
SHORT = {PLAIN: "plain LoRA", PUBLISHED: "OSRM as published", CONTROL: "control", OURS: "ours"}
DIFFERENCES = ((OURS, PLAIN), (OURS, PUBLISHED), (OURS, CONTROL), (CONTROL, PLAIN), (PUBLISHED, PLAIN))
WAYS = {
    OURS: "ours: penalty 3",
    CONTROL: "control: no penalty",
    "rise": "the penalty rises from 0 to 6",
    "fall": "the penalty falls from 6 to 0",
    "average": "mean of the last epoch's weights",
    "own": "penalty in units of the own energy",
    "sam": "sharpness-aware steps",
    "c1000": "features of 1,000 examples",
    "all": "all linear layers: ours, penalty 3",
    "all-control": "all linear layers: control",
    "sum": "penalty on the sum of the adapters",
    "frozen": "A frozen, random orthonormal",
    "shared": "one frozen A for all tasks",
    "sparse": "A frozen, B trained on 10 % of its entries",
}


def read_averages(path: Path) -> pd.DataFrame:
    """Averages over the tasks: a row for each arm, seed and part of the dev rows, a column for each point.

    ``task-arith`` is the one of its points that is best on the first half.
    """
    scores = pd.read_csv(path)
    scores["average"] = scores.iloc[:, 4:].mean(axis=1)
    averages = scores.pivot_table("average", ["arm", "seed", "rows"], "point")
    best = averages.xs("first half", level="rows")[list(SCALES)].idxmax(axis=1)
    chosen = averages.join(best.rename("best"), on=["arm", "seed"])
    return averages.assign(**{"task-arith": [row[row["best"]] for _, row in chosen.iterrows()]})


def main() -> None:
    """Print all."""
    second = read_averages(STUDY / "five-seeds.csv").xs("second half", level="rows")
    _print_arms("Five seeds", second, RULES)
    gains = second.loc[OURS, list(RULES)] - second.loc[CONTROL, list(RULES)]
    rows = [(f"seed {seed}", [f"{gain:+.1f}" for gain in own]) for seed, own in gains.iterrows()]
    rows.append(("deviation over the seeds", [f"{deviation:.1f}" for deviation in gains.std()]))
    print_table(f"{SHORT[OURS]} - {SHORT[CONTROL]} in each seed", ["seed", *RULES.values()], rows)
    _print_arms("Task arithmetic at each lambda, five seeds", second, SCALES)
    _print_ways(read_averages(STUDY / "ways.csv").xs("all", level="rows"))


def _print_arms(title: str, averages: pd.DataFrame, points: Mapping[str, str]) -> None:
    """The main arms, and their paired differences."""
    rows = _average_rows(averages, points, MAIN)
    rows += [(f"{SHORT[arm]} - {SHORT[control]}", _differences(averages, points, arm, control))
             for arm, control in DIFFERENCES]  # fmt: skip
    print_table(title, ["adapters", *points.values()], rows)


def _print_ways(averages: pd.DataFrame) -> None:
    """All of one seed, and the one with three seeds beside ours and the control in the same seeds."""
    points = {"single": "single", **SCALES, **{rule: name for rule, name in RULES.items() if rule != "task-arith"}}
    columns = ["trained with", *(f"TA {name}" if point in SCALES else name for point, name in points.items())]
    first = averages[averages.index.get_level_values("seed") == 0]
    print_table("Ways to train, seed 0", columns, _average_rows(first, points, WAYS))
    rows = _average_rows(averages, points, {arm: WAYS[arm] for arm in (OURS, CONTROL, "sum")})
    rows += [(f"the sum - {SHORT[arm]}", _differences(averages, points, "sum", arm)) for arm in (OURS, CONTROL)]
    print_table("One after the other, three seeds", columns, rows)


def _average_rows(
    averages: pd.DataFrame, points: Mapping[str, str], names: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """A row for each arm: the mean over its seeds, and the deviation where there are several."""
    return [(name, [spread(averages.loc[arm, point]) for point in points]) for arm, name in names.items()]


def _differences(averages: pd.DataFrame, points: Mapping[str, str], arm: str, control: str) -> list[str]:
    return [
        paired_difference({one: averages.loc[one, point] for one in (arm, control)}, arm, control) for point in points
    ]


if __name__ == "__main__":
    main()
