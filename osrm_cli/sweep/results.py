"""``sweep.json``: every point of a sweep, scored on validation examples, which select, and on test examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.evaluation.scores import ScoredMerge, TaskScores, average, example_scores_record, round_answers

SWEEP_NAME = "sweep.json"
CURVE_NAME = "curve.png"


@dataclass(frozen=True)
class SweepResult:
    """Scores of all points and of the single adapters.

    Attributes:
        validation: The single adapters' scores on the validation examples.
        test: The single adapters' scores on the test examples.
        points: In the order of methods and options.
    """

    validation: TaskScores
    test: TaskScores
    points: Sequence[ScoredMerge]

    def best(self) -> list[int]:
        """Indices of the best point of each method, without and with calibration, by the average on validation.

        Of several equal ones, the first.
        """
        leaders: dict[tuple[str, bool], int] = {}
        for index, point in enumerate(self.points):
            leader = leaders.setdefault((point.method, point.calibrated), index)
            if average(point.validation) > average(self.points[leader].validation):
                leaders[point.method, point.calibrated] = index
        return list(leaders.values())

    def record(self, predictions: bool = False) -> dict[str, Any]:
        """The sweep as in ``sweep.json``; predictions only of the single adapters and the best points."""
        best = self.best()
        return {
            "single": _sweep_splits_record(self.validation, self.test, predictions),
            "points": [
                {
                    "method": point.method,
                    "options": dict(point.options),
                    "calibrated": point.calibrated,
                    **_sweep_splits_record(point.validation, point.test, predictions and index in best),
                }
                for index, point in enumerate(self.points)
            ],
            "best": [
                {"method": self.points[i].method, "calibrated": self.points[i].calibrated, "point": i} for i in best
            ],
        }


def _sweep_splits_record(validation: TaskScores, test: TaskScores, predictions: bool) -> dict[str, Any]:
    return {
        "validation": _sweep_scores_record(validation, predictions),
        "test": _sweep_scores_record(test, predictions),
    }


def _sweep_scores_record(scores: TaskScores, predictions: bool) -> dict[str, Any]:
    rows = {
        task: {"headline": score.headline, "metrics": dict(score.metrics), "examples": score.examples}
        for task, score in scores.items()
    }
    record = {"tasks": rows, "average": average(scores)}
    if not predictions:
        return record
    answers = {task: round_answers(score.predictions) for task, score in scores.items()}
    return record | {"predictions": answers} | example_scores_record(scores)
