"""The numbers of the report: a row for each kind and arm, seeds summed up and compared with the baseline."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.plotting.figure import style
from osrm_cli.reporting import arms as arms_of
from osrm_cli.reporting import consistency as agreement
from osrm_cli.reporting import runs as studies
from osrm_cli.reporting.arms import Arm
from osrm_cli.reporting.bootstrap import Bootstrap, Difference
from osrm_cli.reporting.inputs import ReportInputs
from osrm_cli.reporting.runs import Kind, Run, Study, study


@dataclass(frozen=True)
class Spread:
    """Repetitions of one number.

    Attributes:
        mean: Over seeds.
        sd: Standard deviation (n - 1); ``None`` for one.
        n: How many.
    """

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Sum repetitions up; ``None`` if there is none, or if one of them is not known."""
        held = list(values)
        known = [value for value in held if value is not None]
        if not known or len(known) < len(held):
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def __str__(self) -> str:
        """Mean, and the standard deviation where there is one, with one decimal."""
        return f"{self.mean:.1f}" + (f" ± {self.sd:.1f}" if self.sd is not None else "")


@dataclass(frozen=True)
class Row:
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

    kind: Kind
    arm: int
    seeds: tuple[str, ...]
    tasks: Mapping[str, Spread]
    average: Spread
    shares: Mapping[str, Spread | None]
    share: Spread | None
    difference: Difference | None
    chosen: Mapping[str, str]
    validation: Spread | None

    def facts(self, label: str) -> dict[str, Any]:
        """The row as JSON has it, ``label`` being its arm's."""
        return {
            "row": self.kind.label,
            "method": self.kind.method or None,
            "calibrated": self.kind.calibrated,
            "arm": label,
            "seeds": list(self.seeds),
            "tasks": {task: _facts(value) for task, value in self.tasks.items()},
            "average": _facts(self.average),
            "share_of_single": {
                "tasks": {task: _facts(value) for task, value in self.shares.items()},
                "average": _facts(self.share),
            },
            "difference": _difference(self.difference),
            "chosen": dict(self.chosen) or None,
            "validation": _facts(self.validation),
        }


@dataclass(frozen=True)
class Comparison:
    """What tables and pictures are made from.

    Attributes:
        study: All results.
        rows: Their sums.
        baseline: Index of the baseline's arm; ``None`` without one.
        diagnoses: By name of the file.
    """

    study: Study
    rows: Sequence[Row]
    baseline: int | None
    diagnoses: Mapping[str, Mapping[str, Any]]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in the report's order."""
        return self.study.arms

    def of(self, kind: Kind) -> list[Row]:
        """The rows of one kind."""
        return [row for row in self.rows if row.kind == kind]

    def look(self, arm: int) -> dict[str, Any]:
        """The style of an arm's lines."""
        return style(arm, arm == self.baseline)


def compare(given: ReportInputs, baseline: str | None = None, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Sort, sum up and compare.

    Raises:
        OsrmError: If files were scored on different examples, contradict each other, or lack the baseline.
    """
    agreement.check_same_examples(given.files)
    for file in given.files:
        agreement.check_predictions(file)
    found = study(given.files)
    against = arms_of.find(found.arms, baseline)
    return Comparison(found, rows(found, against, Bootstrap(found.labels, resamples, seed)), against, given.diagnoses)


def rows(study: Study, baseline: int | None, bootstrap: Bootstrap) -> list[Row]:
    """Every row, in the order of kinds, then of arms."""
    if baseline is not None:
        bootstrap.prepare([run.tasks for cell in study.cells.values() for run in cell.values()])
    places = [(kind, arm) for kind in study.kinds for arm in range(len(study.arms)) if study.of(kind, arm)]
    return [_row(study, kind, arm, baseline, bootstrap) for kind, arm in places]


def _row(study: Study, kind: Kind, arm: int, baseline: int | None, bootstrap: Bootstrap) -> Row:
    runs = study.of(kind, arm)
    shares = {task: Spread.of(_share(study, arm, run, task) for run in runs.values()) for task in study.tasks}
    by_run = [[_share(study, arm, run, task) for task in study.tasks] for run in runs.values()]
    difference = None
    if baseline not in (None, arm):
        theirs = study.of(kind, baseline)
        difference = bootstrap.difference(
            {seed: run.tasks for seed, run in runs.items()}, {seed: run.tasks for seed, run in theirs.items()}
        )
    return Row(
        kind,
        arm,
        tuple(sorted(runs)),
        {task: _sure(Spread.of(run.tasks[task].headline for run in runs.values())) for task in study.tasks},
        _sure(Spread.of(run.average for run in runs.values())),
        shares if kind.method else {},
        Spread.of(mean(values) for values in by_run) if kind.method else None,
        difference,
        {seed: studies.words(run.options) for seed, run in sorted(runs.items())} if kind.chosen else {},
        Spread.of(run.validation for run in runs.values()),
    )


def _share(study: Study, arm: int, run: Run, task: str) -> float | None:
    alone = study.of(Kind(""), arm).get(run.seed)
    single = alone.tasks[task].headline if alone else 0.0
    return 100 * run.tasks[task].headline / single if single > 0 else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, or ``None`` if a value is not known."""
    found = Spread.of(values)
    return found.mean if found else None


def _sure(value: Spread | None) -> Spread:
    if value is None:
        raise ValueError("a cell without repetitions")
    return value


def _facts(value: Spread | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": round(value.mean, 4), "sd": None if value.sd is None else round(value.sd, 4), "n": value.n}


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    interval = None if found.low is None or found.high is None else [round(found.low, 4), round(found.high, 4)]
    return {
        "mean": round(found.mean, 4),
        "interval": interval,
        "excludes_zero": found.excludes_zero,
        "resampled": found.over,
        "seeds": found.seeds,
    }
