"""Paired bootstrap intervals (Efron, 1979) of the difference between two arms, averaged over tasks and seeds."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osrm_cli.reporting import bootstrap as resampled
from osrm_cli.reporting.consistency import num_labels
from osrm_cli.reporting.score_files import Scored, Scores

Array = NDArray[Any]
Runs = Mapping[str, Scores]  # by seed

LEVEL = 0.95
PAIRS = "seeds and tasks"  # what is resampled where predictions are missing


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline, in points.

    Attributes:
        mean: Over tasks and common seeds.
        low: End of the interval, or ``None`` where there is nothing to resample.
        high: The other end.
        over: What was resampled: ``examples and seeds``, ``examples`` or ``seeds and tasks``.
        seeds: Number of seeds that both arms have.
    """

    mean: float
    low: float | None
    high: float | None
    over: str
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Bootstrap:
    """The same resamples for every comparison: one drawing of each task's examples, one of the seeds.

    Attributes:
        labels: By task: the truth, where it is known.
        resamples: How many.
        seed: Of the drawing.
    """

    def __init__(self, labels: Mapping[str, Array], resamples: int = 2000, seed: int = 0) -> None:
        self.labels = labels
        self.resamples = resamples
        self.seed = seed
        self._known: dict[tuple[str, tuple[str, ...], bytes], Array] = {}

    def prepare(self, runs: Sequence[Scores]) -> None:
        """Score every run with predictions on every resample; each task's examples are drawn once."""
        for task, labels in sorted(self.labels.items()):
            wanted = {_key(task, run[task]): run[task] for run in runs if task in run and _has(run[task])}
            found: dict[Any, list[Array]] = {key: [] for key in wanted}
            if not found:
                continue
            classes = num_labels(labels, *(score.predictions for score in wanted.values()))
            for counts in resampled.draws(self._generator("examples", task), len(labels), self.resamples):
                resamples = resampled.Resamples(counts, labels, classes)
                for key, score in wanted.items():
                    found[key].append(resamples.headlines(score.metrics, np.asarray(score.predictions)))
            self._known |= {key: np.concatenate(parts) for key, parts in found.items()}

    def difference(self, arm: Runs, baseline: Runs) -> Difference | None:
        """The mean difference and its interval; ``None`` without a common seed and task.

        Args:
            arm: Scores by seed and task.
            baseline: Likewise.
        """
        seeds = sorted(set(arm) & set(baseline))
        both = [set(runs[seed]) for runs in (arm, baseline) for seed in seeds]
        tasks = sorted(set.intersection(*both)) if both else []
        if not tasks:
            return None
        gains = np.array([[arm[s][t].headline - baseline[s][t].headline for t in tasks] for s in seeds])
        if all(self._ready(task, runs[seed][task]) for runs in (arm, baseline) for seed in seeds for task in tasks):
            each = [[self._of(task, arm[s][task]) - self._of(task, baseline[s][task]) for task in tasks] for s in seeds]
            by_seed = np.mean(each, axis=1)  # (seeds, resamples)
            drawn = self._generator("seeds").integers(0, len(seeds), (self.resamples, len(seeds)))
            values = by_seed[drawn, np.arange(self.resamples)[:, None]].mean(1)
            over = "examples and seeds" if len(seeds) > 1 else "examples"
        elif gains.size > 1:
            drawn = self._generator("pairs").integers(0, gains.size, (self.resamples, gains.size))
            values, over = gains.ravel()[drawn].mean(1), PAIRS
        else:
            return Difference(float(gains.mean()), None, None, "nothing", len(seeds))
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Difference(float(gains.mean()), float(low), float(high), over, len(seeds))

    def _ready(self, task: str, score: Scored) -> bool:
        return _has(score) and _key(task, score) in self._known

    def _of(self, task: str, score: Scored) -> Array:
        return self._known[_key(task, score)]

    def _generator(self, *names: str) -> np.random.Generator:
        """Keyed by what is drawn, so that other files beside cannot change it."""
        digest = hashlib.sha256("\0".join((str(self.seed), *names)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _has(score: Scored) -> bool:
    return score.predictions is not None


def _key(task: str, score: Scored) -> tuple[str, tuple[str, ...], bytes]:
    return task, score.metrics, hashlib.sha256(np.asarray(score.predictions).tobytes()).digest()
