"""Scores of tasks and merges, as ``eval`` and ``sweep`` find them; ``score_files`` reads what they write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.training_record import describe_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.storage import provenance

NAME = "scores.json"


@dataclass(frozen=True)
class TaskScore:
    """One task's score on one set of examples; every number in percent, as GLUE gives them.

    Attributes:
        metrics: The task's metrics; those of a second dev set (mnli's mismatched) are named after it.
        headline: The primary score: the mean of the task's metrics on its first set.
        single: The single adapter's primary score on the same examples, if it is known.
        examples: Number of examples scored.
        sha256: Digest of those examples; empty if it is not known.
        predictions: Classes or scores on the first set, see ``rounded``; empty if they are not known.
        labels: The truth; empty if it is not known.
    """

    metrics: Mapping[str, float]
    headline: float
    single: float | None = None
    examples: int = 0
    sha256: str = ""
    predictions: tuple[float, ...] = ()
    labels: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """The headline as a share of the single adapter's, in percent; none where that is not above zero."""
        return 100 * self.headline / self.single if self.single and self.single > 0 else None


TaskScores = Mapping[str, TaskScore]  # by task


@dataclass(frozen=True)
class ScoredMerge:
    """One way of merging, scored.

    Attributes:
        method: Name of the merging method.
        options: Every option that counts, as ``osrm merge`` records them.
        calibrated: Whether the heads were calibrated.
        test: Scores on the examples that report.
        validation: Scores on the examples that choose; empty outside a sweep.
        chosen: Whether it is the best of its method on validation.
    """

    method: str
    options: Mapping[str, Any]
    calibrated: bool
    test: TaskScores
    validation: TaskScores = field(default_factory=dict)
    chosen: bool = False


def average(scores: TaskScores) -> float:
    """The mean of the tasks' primary scores."""
    return sum(score.headline for score in scores.values()) / len(scores)


def summary(found: TaskScores) -> dict[str, Any]:
    """Tasks and their average, as JSON has them; an average is there when every task has the number."""
    rows = {task: _row(score) for task, score in found.items()}
    return {
        "tasks": rows,
        "average": {key: _mean([row[key] for row in rows.values()]) for key in ("headline", "single", "ratio")},
    }


def _row(score: TaskScore) -> dict[str, Any]:
    long = ("predictions", "labels")
    return {name: value for name, value in asdict(score).items() if name not in long} | {"ratio": score.ratio}


def answers(found: TaskScores) -> dict[str, Any]:
    """Predictions and labels by task, as JSON has them."""
    return {
        "predictions": {task: list(score.predictions) for task, score in found.items()},
        "labels": {task: list(score.labels) for task, score in found.items()},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def rounded(answers: Sequence[float]) -> tuple[float, ...]:
    """Classes as they are, scores to the digits that float32 has: predictions and labels as JSON has them."""
    return tuple(answer if isinstance(answer, int) else float(f"{answer:.9g}") for answer in answers)


def made(folder: Path) -> dict[str, Any]:
    """How what is scored was made: its adapters, the method with its options, and whether its heads were calibrated."""
    facts = provenance.read_record(folder)
    if "form" not in facts:
        adapter = Adapter.open(folder)
        return {
            "adapters": {adapter.name: describe_adapter(adapter)},
            "method": None,
            "options": {},
            "calibrated": False,
        }
    return {
        "adapters": {row["task"]: _merged_from(row) for row in facts["inputs"]},
        "method": facts["settings"]["method"],
        "options": facts["settings"]["options"],
        "calibrated": "calibration" in facts,
    }


def _merged_from(row: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter as a merged folder recorded it, with what it says of itself if it is still there."""
    try:
        found = describe_adapter(Adapter.open(row["path"]))
    except OsrmError:
        found = {}
    known = found if found.get("sha256") == row["sha256"] else {}
    return {"start": None, "train": None, "drift": None, **known, "path": row["path"], "sha256": row["sha256"]}
