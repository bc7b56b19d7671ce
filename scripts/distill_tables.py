"""Print the tables of ``studies/distill-minilm/README.md`` from the scores beside it.

python -m scripts.distill_tables
"""

from pathlib import Path

import pandas as pd

from scripts.study_tables import print_table, spread

STUDY = Path(__file__).resolve().parent.parent / "studies/distill-minilm"
RUN, PLACE = ["arm", "seed", "rows"], ["setting", "heads"]


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
    for arm, of_arm in averages.groupby("arm"):
        rows = []
        for setting, own in of_arm.groupby("setting", sort=False):
            cells = []
            for heads in ("own", "calibrated"):
                whole, half = (own[own["heads"].eq(heads) & own["rows"].eq(part)] for part in ("all", "second half"))
                cells += [spread(whole["average"]), spread(whole["kept"]), spread(half["kept"])]
            rows.append((str(setting), cells))
        columns = ["setting", "average", "kept", "second half", "calibrated: average", "kept", "second half"]
        print_table(str(arm), columns, rows)


if __name__ == "__main__":
    main()
