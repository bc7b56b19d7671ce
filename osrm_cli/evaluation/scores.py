"""Scores of tasks and merges, as ``eval`` and ``sweep`` compute them; ``score_files`` reads their files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCORES_NAME = "scores.json"


@dataclass(frozen=True)
class TaskScore:
    """One task's score on one set of examples; every number in percent, as GLUE gives them.

    Attributes:
        metrics: The task's metrics; those of a second dev set (mnli's mismatched) are named after it.
        headline: The primary score: the mean of the task's metrics on its first set.
        single: The single adapter's primary score on the same examples; ``None`` if unknown.
        examples: Number of examples scored.
        sha256: Digest of those examples; empty if unknown.
        predictions: Classes or scores on the first set, see ``round_answers``; empty if unknown.
        labels: True labels; empty if unknown.
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
        """Primary score relative to the single adapter's, in percent; ``None`` unless the latter is positive."""
        return 100 * self.headline / self.single if self.single and self.single > 0 else None


TaskScores = Mapping[str, TaskScore]  # by task


@dataclass(frozen=True)
class ScoredMerge:
    """Scores of one merge.

    Attributes:
        method: Name of the merging method.
        options: The options that apply, as ``osrm merge`` records them.
        calibrated: Whether the heads were calibrated.
        test: Scores on the test examples.
        validation: Scores on the validation examples; empty outside a sweep.
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


def summarize_scores(scores: TaskScores) -> dict[str, Any]:
    """Tasks and their averages, as in ``scores.json``; an average is ``None`` unless every task has a value."""
    rows = {task: _row(score) for task, score in scores.items()}
    return {
        "tasks": rows,
        "average": {key: _mean([row[key] for row in rows.values()]) for key in ("headline", "single", "ratio")},
    }


def _row(score: TaskScore) -> dict[str, Any]:
    omitted = ("predictions", "labels")
    return {name: value for name, value in asdict(score).items() if name not in omitted} | {"ratio": score.ratio}


def predictions_record(scores: TaskScores) -> dict[str, Any]:
    """Predictions and labels by task, as in ``scores.json``."""
    return {
        "predictions": {task: list(score.predictions) for task, score in scores.items()},
        "labels": {task: list(score.labels) for task, score in scores.items()},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def round_answers(answers: Sequence[float]) -> tuple[float, ...]:
    """Predictions or labels as in JSON: classes unchanged, scores rounded to the digits of float32."""
    return tuple(answer if isinstance(answer, int) else float(f"{answer:.9g}") for answer in answers)
