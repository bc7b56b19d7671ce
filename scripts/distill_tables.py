"""Print the tables of ``studies/distill-minilm/README.md`` from the scores beside it.

python -m scripts.distill_tables
"""

from pathlib import Path

import pandas as pd

from scripts.study_tables import paired_difference, print_table, spread

STUDY = Path(__file__).resolve().parent.parent / "studies/distill-minilm"
RUN, PLACE = ["arm", "seed", "rows"], ["setting", "heads"]
OURS, PLAIN, CONTROL = "gevd-penalty-3", "kaiming-native", "random-orthonormal"
NAMES = {OURS: "`gevd`", PLAIN: "plain LoRA", CONTROL: "control"}
OTHERS = ("sequential", "matched-weights", "task-arith")
DEFAULT = "rate 2.5e-4"
CORNERS = {  # settings by the number of texts
    "rank 8": {16: "rank 8, 16 texts", 64: "rank 8, 64 texts", 128: "rank 8", 512: "rank 8, 512 texts"},
    "rank 32": {16: "rank 32, 16 texts", 128: "rank 32", 512: "rank 32, 512 texts"},
    "rank 64": {16: "16 texts", 64: "64 texts", 128: "default", 512: "512 texts"},
}
CELLS = ("16 texts", "64 texts", "default", "512 texts", "rank 8", "rank 16", "rank 32")


def read_averages(path: Path = STUDY / "scores.csv") -> pd.DataFrame:
    """A row for each arm, setting, seed, kind of heads and part of the dev rows: average of the tasks, percent kept."""
    scores = pd.read_csv(path)
    averages = scores[[*RUN, *PLACE]].assign(average=scores.iloc[:, len(RUN) + len(PLACE) :].mean(axis=1))
    single = averages[averages["setting"].eq("single")].set_index(RUN)["average"].rename("single")
    averages = averages.join(single, on=RUN)
    return averages.assign(kept=100 * averages["average"] / averages["single"])


def main() -> None:
    """Print all."""
    averages = read_averages()
    others = averages["setting"].str.startswith(OTHERS)
    corners = averages["setting"].str.fullmatch(r"rank \d+, \d+ texts")
    for arm, of_arm in averages[~others & ~corners].groupby("arm"):
        rows = []
        for setting, own in of_arm.groupby("setting", sort=False):
            cells = []
            for heads in ("own", "calibrated"):
                whole, half = (own[own["heads"].eq(heads) & own["rows"].eq(part)] for part in ("all", "second half"))
                cells += [spread(whole["average"]), spread(whole["kept"]), spread(half["kept"])]
            rows.append((str(setting), cells))
        columns = ["setting", "average", "kept", "second half", "calibrated: average", "kept", "second half"]
        print_table(str(arm), columns, rows)
    _print_differences(averages)
    _print_corners(averages[averages["seed"].eq(0) & averages["rows"].eq("all")])
    _print_others(averages[others & averages["rows"].eq("all")])


def _print_differences(averages: pd.DataFrame) -> None:
    """Of distilled adapters with calibrated heads, over the seeds: all dev rows, and the half that decided nothing."""
    distilled = averages[averages["heads"].eq("calibrated")].replace({"setting": {DEFAULT: "default"}})
    for control in (CONTROL, PLAIN):
        rows = []
        for cell in CELLS:
            own = distilled[distilled["setting"].eq(cell)]
            by_part = {part: rows_of.set_index("seed") for part, rows_of in own.groupby("rows")}
            cells = []
            for part, value in (
                ("all", "average"),
                ("all", "kept"),
                ("second half", "average"),
                ("second half", "kept"),
            ):
                scores = {str(arm): scored[value] for arm, scored in by_part[part].groupby("arm")}
                cells.append(paired_difference(scores, OURS, control))
            rows.append((cell, cells))
        columns = ["distilled", "average", "kept", "second half: average", "kept"]
        print_table(f"{NAMES[OURS]} - {NAMES[control]}", columns, rows)


def _print_corners(averages: pd.DataFrame) -> None:
    """Percent kept from few or many texts at low and high rank; ``averages``: of all dev rows, seed 0."""
    kept = averages.replace({"setting": {DEFAULT: "default"}}).set_index(["arm", "heads", "setting"])["kept"]
    rows = []
    for rank, settings in CORNERS.items():
        for texts, setting in settings.items():
            cells = [kept[arm, heads, setting] for heads in ("own", "calibrated") for arm in (OURS, CONTROL)]
            numbers = [f"{cell:.1f}" for cell in cells]
            rows.append((f"{rank}, {texts} texts", [*numbers, f"{cells[2] - cells[3]:+.1f}"]))
    columns = [f"{heads}{NAMES[arm]}" for heads in ("", "calibrated: ") for arm in (OURS, CONTROL)]
    print_table("Texts and ranks together, seed 0, percent kept", ["distilled", *columns, "difference"], rows)


def _print_others(averages: pd.DataFrame) -> None:
    """Percent kept by the methods that do not distill; ``averages``: of all dev rows."""
    rows = [
        (str(setting), [
            spread(own.loc[own["arm"].eq(arm) & own["heads"].eq(heads), "kept"])
            for heads in ("own", "calibrated")
            for arm in NAMES
        ])
        for setting, own in averages.groupby("setting", sort=False)
    ]  # fmt: skip
    columns = [f"{heads}{name}" for heads in ("", "calibrated: ") for name in NAMES.values()]
    print_table("Other methods, percent kept", ["method", *columns], rows)


if __name__ == "__main__":
    main()
