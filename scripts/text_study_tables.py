"""Print the tables of ``studies/text-smollm2/README.md`` from the scores beside it.

python -m scripts.text_study_tables
"""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from osrm_cli.diagnosis.score_drops import ScoreDrops, correlate_score_drops, predict_disturbance
from scripts.study_tables import paired_difference, print_table, spread

STUDY = Path(__file__).resolve().parent.parent / "studies/text-smollm2"
METHODS = ("single", "task-arith", "ties", "tsv", "knots-ties", "dare", "regmean")
BEST = "gevd-penalty-10"
DIFFERENCES = (
    ("gevd", "kaiming"),
    ("gevd", "random-orthonormal"),
    (BEST, "kaiming"),
    (BEST, "random-orthonormal"),
    (BEST, "gevd"),
)


def read_averages() -> pd.DataFrame:
    """A row for each sweep, arm, seed and method: the average over the tasks on the half that did not select."""
    best = pd.read_csv(STUDY / "averages.csv")
    single = best.drop_duplicates(["sweep", "arm", "seed"]).assign(method="single")
    single["test"] = single["single_test"]
    scores = _read_scores(STUDY / "results.parquet").query("sweep.notna() and part == 'test'")
    scores = scores[scores["method"].eq("single") | scores["chosen"].eq(True)]
    runs = scores.groupby(["arm", "seed", "method"], as_index=False)["headline"].mean()
    main = runs.rename(columns={"headline": "test"}).assign(sweep="main")
    return pd.concat([main, best, single], ignore_index=True)


def main() -> None:
    """Print all."""
    averages = read_averages()
    for sweep, scores in averages.groupby("sweep", sort=False):
        _print_runs(str(sweep), scores, "test", [name for name in METHODS if name in set(scores["method"])])
    written = pd.read_csv(STUDY / "written.csv").rename(columns={"model": "method"})
    models = ["single", "task-arith", "tsv", "regmean"]
    for metric in ("rouge_l", "exact_match"):
        runs = written.groupby(["arm", "seed", "method"], as_index=False)[metric].mean()
        _print_runs(f"written, {metric}", runs, metric, models)
        _print_tasks(written, metric, models)
    tasks = pd.read_csv(STUDY / "sequential.csv")
    improvement = (tasks["base_loss"] - tasks["merged_loss"]) / (tasks["base_loss"] - tasks["single_loss"])
    tasks["kept"] = 100 * improvement
    columns = ["kept", "single_likelihood", "merged_likelihood"]
    seeds = tasks.melt(["arm", "seed"], columns, "method").groupby(["arm", "seed", "method"], as_index=False).mean()
    _print_runs("sequential", seeds, "value", columns)
    shares = _kept_shares(STUDY / "results.parquet").T.groupby(level=["method", "arm", "scale"]).mean().T
    _print_kept_shares("three seeds", shares.mean().to_frame().T)
    _print_best_shares(shares)
    _print_predictions(STUDY / "results.parquet")
    before = STUDY / "small.parquet"
    _print_kept_shares("the study before it", _kept_shares(before).mean().to_frame().T)
    _print_kept_shares("each of two tasks", _kept_shares(STUDY / "small-two-tasks.parquet", before))


def _print_runs(title: str, runs: pd.DataFrame, value: str, methods: list[str]) -> None:
    """Mean and deviation over the seeds, and paired differences.

    ``runs``: a row for each arm, seed and method.
    """
    rows = [
        (str(arm), [spread(own.loc[own["method"] == method, value], "not run") for method in methods])
        for arm, own in runs.groupby("arm")
    ]
    by_arm = {str(method): own.pivot_table(value, "seed", "arm") for method, own in runs.groupby("method")}
    rows += [
        (f"{arm} - {control}", [paired_difference(by_arm[method], arm, control) for method in methods])
        for arm, control in DIFFERENCES
        if {arm, control} <= set(runs["arm"])
    ]
    print_table(title, ["adapters", *methods], rows)


def _print_tasks(written: pd.DataFrame, metric: str, models: list[str]) -> None:
    """Each task's mean over the seeds, and paired differences with an interval over the tasks."""
    means = written.groupby(["method", "arm", "task"])[metric].mean().unstack("task")
    rows = [
        (f"{arm}, {model}", [f"{score:.1f}" for score in means.loc[model, arm]])
        for model in models
        for arm in means.loc[model].index
    ]
    print_table(f"written, {metric}, by task", ["adapters", *means.columns], rows)
    by_arm = {model: means.loc[model].T for model in models}
    rows = [
        (f"{arm} - {control}", [paired_difference(by_arm[model], arm, control) for model in models])
        for arm, control in DIFFERENCES
    ]
    print_table(f"written, {metric}, over the tasks", ["adapters", *models], rows)


def _read_scores(path: Path) -> pd.DataFrame:
    """A row for each task of each merge, and of the single adapters; ``sweep`` is missing where it is of two tasks."""
    scores = pd.read_parquet(path).query("headline.notna()")
    runs = scores["file"].str.rsplit("/", n=2, expand=True)
    scores["arm"], scores["seed"] = runs[0].str.rpartition("/")[2], runs[1]
    scores["sweep"] = runs[2].where(runs[2].eq("sweep.json"))
    scores["loss"] = scores["metrics"].map(lambda metrics: dict(metrics)["loss"])
    scores["scale"] = scores["options"].map(lambda text: json.loads(text)["lambda"], na_action="ignore").fillna(1)
    return scores.assign(method=scores["method"].fillna("single"))


def _read_losses(path: Path) -> pd.DataFrame:
    """Mean losses of both halves: a row for each task, a column for each method, arm, seed and lambda."""
    return _read_scores(path).query("sweep.notna()").pivot_table("loss", "task", ["method", "arm", "seed", "scale"])


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


def _print_kept_shares(study: str, shares: pd.DataFrame) -> None:
    """At each lambda: of several numbers in ``shares``, a comma between them."""
    by_point = shares.T.groupby(level=["arm", "method", "scale"])
    cells = {point: ", ".join(f"{share:.0f}" for share in own.to_numpy().ravel()) for point, own in by_point}
    points = sorted({(METHODS.index(method), scale) for _, method, scale in cells})
    columns = [f"{METHODS[method]} {scale:g}" for method, scale in points]
    arms = list(dict.fromkeys(arm for arm, _, _ in cells))
    rows = [(arm, [cells.get((arm, METHODS[method], scale), "") for method, scale in points]) for arm in arms]
    print_table(f"kept of the improvement of the loss, {study}", ["adapters", *columns], rows)


def _print_best_shares(shares: pd.DataFrame) -> None:
    """``shares``: by task, method, arm and lambda."""
    averages = shares.mean()
    best = {pair: own.idxmax() for pair, own in averages.groupby(level=["method", "arm"])}
    methods = [method for method in METHODS if method in averages.index]
    arms = averages.index.unique("arm")
    rows = [
        (arm, [f"{averages[best[method, arm]]:.1f} at {best[method, arm][2]:g}" for method in methods]) for arm in arms
    ]
    for arm, control in DIFFERENCES:
        chosen = [{name: shares[best[method, name]] for name in (arm, control)} for method in methods]
        rows += [(f"{arm} - {control}", [paired_difference(pair, arm, control) for pair in chosen])]
    print_table("kept at the best lambda, three seeds", ["adapters", *methods], rows)


def _print_predictions(path: Path) -> None:
    """How ``osrm diagnose`` ranks the drops of merged pairs, and the others' energy relative to a task's own."""
    diagnoses = json.loads(pq.read_schema(path).metadata[b"osrm"])["diagnoses"]
    scores = _read_scores(path).query("sweep.isna()")
    rows = []
    for name, found in diagnoses.items():
        arm = name.split("/")[1].removeprefix("pairs-").removesuffix("-0")
        if arm.startswith("main-"):
            continue
        own = scores[scores["file"].str.startswith(f"pairs/{arm}/")]
        merges = []
        for file, pair in own.groupby("file"):
            by_method = pair.pivot_table("headline", "task", "method")
            drops = (by_method["single"] - by_method["task-arith"]).to_dict()
            merges.append(ScoreDrops(str(file), sorted(drops), drops))
        matrix = found["interference"]
        pairs = correlate_score_drops(matrix, merges)["pairs"]
        energies = [predict_disturbance(matrix, list(matrix), task) / matrix[task][task] for task in matrix]
        cells = [
            f"{pairs['rho']:.2f}",
            f"{pairs['p']:.4f}",
            f"{pairs['n']}",
            f"{min(energies):.1f} to {max(energies):.1f}",
        ]
        rows.append((arm, cells))
    print_table("predicted and measured drops of pairs", ["adapters", "rho", "p", "n", "others' energy"], rows)


if __name__ == "__main__":
    main()
