"""``sweep.json``: every point of a sweep on two sets of examples, of which one chooses and the other reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAME = "sweep.json"
CURVE = "curve.png"


@dataclass(frozen=True)
class Result:
    """One task's result on one set of examples, in percent.

    Attributes:
        headline: The mean of the metrics.
        metrics: The task's metrics.
        predictions: Classes or scores, see ``scores.rounded``; one per example.
    """

    headline: float
    metrics: Mapping[str, float]
    predictions: tuple[float, ...]


Results = Mapping[str, Result]  # by task


@dataclass(frozen=True)
class SweepPoint:
    """One merge.

    Attributes:
        method: Name of the method.
        options: Every option that counts, as ``osrm merge`` records them.
        calibrated: Whether the heads were calibrated.
        validation: Results on the examples that choose.
        test: Results on the examples that report.
    """

    method: str
    options: Mapping[str, Any]
    calibrated: bool
    validation: Results
    test: Results


@dataclass(frozen=True)
class SweepResult:
    """All points, beside the single adapters.

    Attributes:
        validation: The single adapters' results on the examples that choose.
        test: The same on the examples that report.
        points: In the order of methods and options.
    """

    validation: Results
    test: Results
    points: Sequence[SweepPoint]

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


def average(results: Results) -> float:
    """The mean of the tasks' headlines."""
    return sum(result.headline for result in results.values()) / len(results)


def _both_splits(validation: Results, test: Results, predictions: bool) -> dict[str, Any]:
    return {"validation": _facts(validation, predictions), "test": _facts(test, predictions)}


def _facts(results: Results, predictions: bool) -> dict[str, Any]:
    rows = {
        task: {"headline": row.headline, "metrics": dict(row.metrics), "examples": len(row.predictions)}
        for task, row in results.items()
    }
    found = {"tasks": rows, "average": average(results)}
    return found | (
        {"predictions": {task: list(row.predictions) for task, row in results.items()}} if predictions else {}
    )
