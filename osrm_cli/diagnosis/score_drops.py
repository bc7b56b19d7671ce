"""What merged adapters lost, and how well the predicted disturbance of each task ranks it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.diagnosis.interference import Matrix
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import read_score_file

_EXACT = 8  # points up to which every order is tried for p: 8! = 40,320


@dataclass(frozen=True)
class ScoreDrops:
    """What each task lost in one merge.

    Attributes:
        name: The file, and in it the method.
        tasks: Tasks that were merged.
        drops: By task: the single adapter's primary score minus the merge's, in points.
    """

    name: str
    tasks: Sequence[str]
    drops: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        n: Number of points.
        rho: ``None`` where all predictions or all drops are the same, or there are fewer than three points.
        p: Two-sided, that an order as good or as bad comes by chance: exact up to 8 points.
    """

    n: int
    rho: float | None = None
    p: float | None = None


def read_score_drops(path: Path) -> list[ScoreDrops]:
    """The drops of the merge of a ``scores.json``, or of the best ones of a ``sweep.json``, on the test split.

    Raises:
        OsrmError: If the file is missing or damaged, is of no merge, or no task has a single adapter's score beside it.
    """
    file = read_score_file(path)
    merges = [merge for merge in file.merges if merge.chosen or not merge.validation]
    if not merges:
        raise OsrmError(f"{path} has no scores of a merge", "osrm eval MERGED")
    found = []
    for merge in merges:
        name = f"{file.name}: {merge.method}{', calibrated' * merge.calibrated}" if merge.validation else file.name
        tasks = file.single.keys() & merge.test.keys()
        drops = {task: file.single[task].headline - merge.test[task].headline for task in sorted(tasks)}
        found.append(ScoreDrops(name, sorted(file.adapters), drops))
    if not all(merge.drops for merge in found):
        raise OsrmError(f"{path}: no task has its single adapter's score beside it", "osrm eval MERGED, with --single")
    return found


def predict_disturbance(matrix: Matrix, tasks: Sequence[str], task: str) -> float:
    """What the other tasks' updates do to one task's inputs."""
    return sum(matrix[other][task] for other in tasks if other != task)


def correlate_score_drops(matrix: Matrix, merges: Sequence[ScoreDrops]) -> dict[str, Any]:
    """Each merge of three tasks or more by itself; all merges of two together, a point for each task.

    The prediction is ``predict_disturbance``; under ``to_own`` it is that over the energy of the task's own update.

    Args:
        matrix: Relative interference by task and task.
        merges: What was measured.

    Raises:
        OsrmError: If a merge is of other tasks.
    """
    several: list[dict[str, Any]] = []
    pairs: list[_Point] = []
    for merge in merges:
        if unknown := sorted({*merge.tasks, *merge.drops} - matrix.keys()):
            raise OsrmError(
                f"{merge.name} has task '{unknown[0]}', the adapters are of: {', '.join(matrix)}",
                "give the adapters that were merged",
            )
        points = [_predict_drop(matrix, merge, task) for task in sorted(merge.drops)]
        if len(merge.tasks) == 2:
            pairs += points
        else:
            several.append({"scores": merge.name, "drops": dict(merge.drops), **_rank_correlations(points)})
    return {"merges": several, "pairs": _rank_correlations(pairs) if pairs else None}


_Point = tuple[float, float, float]  # disturbance, the same over the task's own energy, drop


def _predict_drop(matrix: Matrix, merge: ScoreDrops, task: str) -> _Point:
    disturbed, own = predict_disturbance(matrix, merge.tasks, task), matrix[task][task]
    return disturbed, disturbed / own if own > 0 else math.inf, merge.drops[task]


def _rank_correlations(points: Sequence[_Point]) -> dict[str, Any]:
    plain, to_own = (_correlate_drop_ranks([(point[i], point[2]) for point in points]) for i in (0, 1))
    return {**vars(plain), "to_own": {"rho": to_own.rho, "p": to_own.p}}


def _correlate_drop_ranks(points: Sequence[tuple[float, float]]) -> Correlation:
    from scipy import stats

    predicted, drops = zip(*points, strict=True)
    if len(points) < 3 or len(set(predicted)) == 1 or len(set(drops)) == 1:
        return Correlation(len(points))
    ranks, measured = stats.rankdata(predicted), stats.rankdata(drops)
    found = stats.spearmanr(ranks, measured)
    p = float(found.pvalue)
    if len(points) <= _EXACT:
        everything = math.factorial(len(points))

        def product(order: Any, axis: int) -> Any:
            return (order * measured).sum(axis=axis)

        test = stats.permutation_test(
            (ranks,), product, permutation_type="pairings", vectorized=True, n_resamples=everything
        )
        p = float(test.pvalue)
    return Correlation(len(points), float(found.statistic), p)
