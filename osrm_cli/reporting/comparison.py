"""The numbers of the report: a row for each kind and arm, repetitions summed up and compared with the baseline."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from osrm_cli.reporting.bootstrap import Bootstrap, Difference
from osrm_cli.reporting.runs import Run, RunTable, ScoreKind


@dataclass(frozen=True)
class MeanStd:
    """Repetitions of one number.

    Attributes:
        mean: Over repetitions.
        sd: Standard deviation (n - 1); ``None`` for one.
        n: How many.
        text: Mean, and the standard deviation where there is one, with one decimal.
    """

    mean: float
    sd: float | None
    n: int
    text: str


@dataclass(frozen=True)
class ComparisonRow:
    """One kind by one arm.

    Attributes:
        kind: What was scored.
        arm: Index of the arm.
        seeds: The repetitions.
        tasks: Score of each task.
        average: Over the tasks.
        shares: The same as a share of the single adapter's, in percent; ``None`` where that is not above zero.
        share: Average of these.
        difference: From the baseline; ``None`` for the baseline itself and where nothing is common.
        chosen: By repetition: the options that a sweep chose.
        validation: Average that they were chosen by.
    """

    kind: ScoreKind
    arm: int
    seeds: tuple[str, ...]
    tasks: Mapping[str, MeanStd]
    average: MeanStd
    shares: Mapping[str, MeanStd | None]
    share: MeanStd | None
    difference: Difference | None
    chosen: Mapping[str, str]
    validation: MeanStd | None


@dataclass(frozen=True)
class Comparison:
    """What tables and plots are made from.

    Attributes:
        table: All runs.
        baseline: Index of the baseline's arm; ``None`` without one.
        rows: In the order of kinds, then of arms.
        rows_of: The same by kind.
        resamples: Number of resamples of an interval.
    """

    table: RunTable
    baseline: int | None
    rows: tuple[ComparisonRow, ...]
    rows_of: Mapping[ScoreKind, tuple[ComparisonRow, ...]]
    resamples: int


def compare_arms(table: RunTable, baseline: int | None, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Sum up repetitions and compare every arm with the baseline."""
    bootstrap = Bootstrap(table.labels, resamples, seed)
    if baseline is not None:
        bootstrap.prepare([run.tasks for cell in table.cells.values() for run in cell.values()])
    arms = range(len(table.arms.arms))
    places = [(kind, arm) for kind in table.kinds for arm in arms if (kind, arm) in table.cells]
    rows = tuple(_make_comparison_row(table, kind, arm, baseline, bootstrap) for kind, arm in places)
    rows_of = {kind: tuple(row for row in rows if row.kind == kind) for kind in table.kinds}
    return Comparison(table, baseline, rows, rows_of, resamples)


def _make_comparison_row(
    table: RunTable, kind: ScoreKind, arm: int, baseline: int | None, bootstrap: Bootstrap
) -> ComparisonRow:
    runs = table.cells[kind, arm]
    single = next((cell for (other, index), cell in table.cells.items() if index == arm and not other.method), {})
    shares = [
        {task: _share_of_single_run(run, single.get(run.seed), task) for task in table.tasks} for run in runs.values()
    ]
    difference = None
    if baseline is not None and baseline != arm:
        theirs = table.cells.get((kind, baseline), {})
        difference = bootstrap.difference(
            {seed: run.tasks for seed, run in runs.items()}, {seed: run.tasks for seed, run in theirs.items()}
        )
    return ComparisonRow(
        kind,
        arm,
        tuple(sorted(runs)),
        {task: summarize_repetitions(run.tasks[task].headline for run in runs.values()) for task in table.tasks},
        summarize_repetitions(run.average for run in runs.values()),
        {task: summarize_known_repetitions(own[task] for own in shares) for task in table.tasks} if kind.method else {},
        summarize_known_repetitions(mean_known(own.values()) for own in shares) if kind.method else None,
        difference,
        {seed: run.options for seed, run in sorted(runs.items())} if kind.chosen else {},
        summarize_known_repetitions(run.validation for run in runs.values()),
    )


def _share_of_single_run(run: Run, alone: Run | None, task: str) -> float | None:
    single = alone.tasks[task].headline if alone else 0.0
    return 100 * run.tasks[task].headline / single if single > 0 else None


def summarize_repetitions(values: Iterable[float]) -> MeanStd:
    """Sum repetitions up; there is at least one."""
    known = list(values)
    mean, sd = statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None
    return MeanStd(mean, sd, len(known), f"{mean:.1f}" + (f" ± {sd:.1f}" if sd is not None else ""))


def summarize_known_repetitions(values: Iterable[float | None]) -> MeanStd | None:
    """The same; ``None`` if there is no value, or if one of them is not known."""
    given = list(values)
    known = [value for value in given if value is not None]
    return summarize_repetitions(known) if known and len(known) == len(given) else None


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean, or ``None`` if a value is not known."""
    summary = summarize_known_repetitions(values)
    return summary.mean if summary else None
