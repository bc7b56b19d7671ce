"""``sweep.json``: every point of a sweep on two sets of examples, of which one chooses and the other reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.evaluation.scores import ScoredMerge, TaskScores, average

NAME = "sweep.json"
CURVE = "curve.png"


@dataclass(frozen=True)
class SweepResult:
    """All points, beside the single adapters.

    Attributes:
        validation: The single adapters' scores on the examples that choose.
        test: The same on the examples that report.
        points: In the order of methods and options.
    """

    validation: TaskScores
    test: TaskScores
    points: Sequence[ScoredMerge]

    def best(self) -> list[int]:
        """Indices of the best point of each method, without and with calibration, by the average on validation.

        The first one counts where several are equal.
        """
        found: dict[tuple[str, bool], int] = {}
        for index, point in enumerate(self.points):
            leader = found.setdefault((point.method, point.calibrated), index)
            if average(point.validation) > average(self.points[leader].validation):
                found[point.method, point.calibrated] = index
        return list(found.values())

    def facts(self, predictions: bool = False) -> dict[str, Any]:
        """The sweep as JSON has it; predictions for the single adapters and the best points."""
        best = self.best()
        return {
            "single": _both_splits(self.validation, self.test, predictions),
            "points": [
                {
                    "method": point.method,
                    "options": dict(point.options),
                    "calibrated": point.calibrated,
                    **_both_splits(point.validation, point.test, predictions and index in best),
                }
                for index, point in enumerate(self.points)
            ],
            "best": [
                {"method": self.points[i].method, "calibrated": self.points[i].calibrated, "point": i} for i in best
            ],
        }


def _both_splits(validation: TaskScores, test: TaskScores, predictions: bool) -> dict[str, Any]:
    return {"validation": _facts(validation, predictions), "test": _facts(test, predictions)}


def _facts(scores: TaskScores, predictions: bool) -> dict[str, Any]:
    rows = {
        task: {"headline": score.headline, "metrics": dict(score.metrics), "examples": score.examples}
        for task, score in scores.items()
    }
    found = {"tasks": rows, "average": average(scores)}
    return found | (
        {"predictions": {task: list(score.predictions) for task, score in scores.items()}} if predictions else {}
    )
