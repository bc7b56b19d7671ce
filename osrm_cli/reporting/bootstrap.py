"""Paired bootstrap intervals (Efron, 1979) of the difference between two arms, averaged over tasks and seeds.

A resample of a task's examples is a row of counts: how often each example was drawn. A task's primary score is computed
on many resamples at once: metrics of classes follow from the counts in the confusion matrix, correlations from weighted
moments, Spearman's from weighted mid-ranks, those of text from sums over what each example scores.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osrm_cli.evaluation.scores import TaskScore, TaskScores
from osrm_cli.tasks.label_sets import MAX_CLASSES, label_matrix
from osrm_cli.tasks.metrics import METRICS, MULTI_LABEL_METRICS, REGRESSION_METRICS
from osrm_cli.tasks.text.metrics import EXAMPLE_LOSS, EXAMPLE_TOKENS

Array = NDArray[Any]
Runs = Mapping[str, TaskScores]  # by seed

LEVEL = 0.95
PAIRS = "seeds and tasks"  # what is resampled where predictions are missing

_ENTRIES = 4_000_000  # counts held at once


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline, in points.

    Attributes:
        mean: Over tasks and common seeds.
        low: End of the interval, or ``None`` where there is nothing to resample.
        high: The other end.
        over: What was resampled: ``examples and seeds``, ``examples`` or ``seeds and tasks``.
        seeds: Number of seeds that both arms have.
        excludes_zero: Whether the whole interval lies on one side of zero.
    """

    mean: float
    low: float | None
    high: float | None
    over: str
    seeds: int
    excludes_zero: bool


class Bootstrap:
    """The same resamples for every comparison: one drawing of each task's examples, one of the seeds.

    Attributes:
        labels: By task: the truth, where it is known.
        resamples: How many.
        seed: Of the drawing.
    """

    def __init__(self, labels: Mapping[str, Sequence[float]], resamples: int = 2000, seed: int = 0) -> None:
        self.labels = labels
        self.resamples = resamples
        self.seed = seed
        self._known: dict[tuple[str, tuple[str, ...], bytes], Array] = {}

    def prepare(self, runs: Sequence[TaskScores]) -> None:
        """Score every run with predictions on every resample; each task's examples are drawn once."""
        for task in sorted({task for run in runs for task in run}):
            labels = np.asarray(self.labels.get(task, ()))
            wanted = {
                _predictions_key(task, run[task]): run[task]
                for run in runs
                if task in run and (run[task].per_example or (run[task].predictions and len(labels)))
            }
            found: dict[Any, list[Array]] = {key: [] for key in wanted}
            if not found:
                continue
            series = [score.predictions for score in wanted.values() if score.predictions]
            classes = count_reported_classes(labels, *series) if series else 0
            examples = len(labels) if series else next(iter(wanted.values())).examples
            for counts in draw_resample_counts(self._generator("examples", task), examples, self.resamples):
                resamples = BootstrapResamples(counts, labels, classes)
                for key, score in wanted.items():
                    found[key].append(resamples.headlines_of(score))
            self._known |= {key: np.concatenate(parts) for key, parts in found.items()}

    def difference(self, arm: Runs, baseline: Runs) -> Difference | None:
        """The mean difference and its interval; ``None`` without a common seed and task.

        Args:
            arm: TaskScores by seed and task.
            baseline: Likewise.
        """
        seeds = sorted(set(arm) & set(baseline))
        both = [set(runs[seed]) for runs in (arm, baseline) for seed in seeds]
        tasks = sorted(set.intersection(*both)) if both else []
        if not tasks:
            return None
        gains = np.array([[arm[s][t].headline - baseline[s][t].headline for t in tasks] for s in seeds])
        if all(
            self._has_resamples(task, runs[seed][task]) for runs in (arm, baseline) for seed in seeds for task in tasks
        ):
            each = [
                [
                    self._resampled_score(task, arm[s][task]) - self._resampled_score(task, baseline[s][task])
                    for task in tasks
                ]
                for s in seeds
            ]
            by_seed = np.mean(each, axis=1)  # (seeds, resamples)
            drawn = self._generator("seeds").integers(0, len(seeds), (self.resamples, len(seeds)))
            values = by_seed[drawn, np.arange(self.resamples)[:, None]].mean(1)
            over = "examples and seeds" if len(seeds) > 1 else "examples"
        elif gains.size > 1:
            drawn = self._generator("pairs").integers(0, gains.size, (self.resamples, gains.size))
            values, over = gains.ravel()[drawn].mean(1), PAIRS
        else:
            return Difference(float(gains.mean()), None, None, "nothing", len(seeds), False)
        low, high = map(float, np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        return Difference(float(gains.mean()), low, high, over, len(seeds), low > 0 or high < 0)

    def _has_resamples(self, task: str, score: TaskScore) -> bool:
        return score.has_predictions and _predictions_key(task, score) in self._known

    def _resampled_score(self, task: str, score: TaskScore) -> Array:
        return self._known[_predictions_key(task, score)]

    def _generator(self, *names: str) -> np.random.Generator:
        """Keyed by what is drawn, so that other files beside cannot change it."""
        digest = hashlib.sha256("\0".join((str(self.seed), *names)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _predictions_key(task: str, score: TaskScore) -> tuple[str, tuple[str, ...], bytes]:
    names = tuple(score.per_example) or bootstrap_metric_names(score)
    values = np.asarray(list(score.per_example.values()) or score.predictions)
    return task, names, hashlib.sha256(values.tobytes()).digest()


def bootstrap_metric_names(score: TaskScore) -> tuple[str, ...]:
    """The metrics whose mean is the primary score."""
    return tuple(name for name in score.metrics if name in METRICS)


def count_reported_classes(*series: Any) -> int:
    """Number of classes that occur, at least two."""
    return max(2, *(1 + int(max(values)) for values in series))


def draw_resample_counts(generator: np.random.Generator, examples: int, resamples: int) -> Iterator[Array]:
    """Counts of examples drawn with replacement, shape ``(some, examples)``, ``resamples`` rows in all."""
    at_once = max(1, _ENTRIES // examples)
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = generator.integers(0, examples, (rows, examples)) + examples * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * examples).reshape(rows, examples)
        yield counts.astype(np.float64)  # products of integers would not go through BLAS


def resampled_text_headlines(counts: Array, per_example: Mapping[str, Sequence[float]]) -> Array:
    """The primary score of a text task on resamples of its examples: the mean of its metrics, in percent.

    Args:
        counts: How often each example was drawn; shape ``(resamples, examples)``.
        per_example: See ``TaskScore.per_example``.

    Returns:
        Shape ``(resamples,)``.
    """
    values = {name: np.asarray(own, dtype=np.float64) for name, own in per_example.items()}
    tokens, loss = values.pop(EXAMPLE_TOKENS, None), values.pop(EXAMPLE_LOSS, None)
    found = [counts @ own / counts.sum(1) for own in values.values()]
    if tokens is not None and loss is not None:  # the likelihood is that of all tokens: long completions count for more
        found.append(100.0 * np.exp(-(counts @ (loss * tokens)) / (counts @ tokens)))
    return np.asarray(np.mean(found, axis=0))


@dataclass(frozen=True)
class BootstrapResamples:
    """Many resamples of one task's examples.

    Attributes:
        counts: How often each example was drawn; shape ``(resamples, examples)``.
        labels: Shape ``(examples,)``.
        num_labels: Number of classes; of no concern to correlations.
    """

    counts: Array
    labels: Array
    num_labels: int = 2

    def headlines_of(self, score: TaskScore) -> Array:
        """A task's primary score on each resample, in percent, shape ``(resamples,)``."""
        if score.per_example:
            return resampled_text_headlines(self.counts, score.per_example)
        return self.headlines(bootstrap_metric_names(score), np.asarray(score.predictions))

    def headlines(self, names: Sequence[str], predictions: Array) -> Array:
        """The mean of the metrics on each resample, in percent.

        Args:
            names: Metrics of ``tasks.metrics``.
            predictions: Shape ``(examples,)``.

        Returns:
            Shape ``(resamples,)``.
        """
        if set(names) <= set(REGRESSION_METRICS):
            correlations = {"pearson": self._pearson, "spearman": self._spearman}
            found = [correlations[name](predictions) for name in names]
        elif set(names) <= set(MULTI_LABEL_METRICS):
            of_sets = {"micro_f1": self._micro_f1, "subset_accuracy": self._subset_accuracy}
            found = [of_sets[name](predictions) for name in names]
        else:
            confusion = self._confusion(predictions)
            found = [_CONFUSION[name](confusion) for name in names]
        return np.asarray(100.0 * np.mean(found, axis=0))

    def _confusion(self, predictions: Array) -> Array:
        """Shape ``(resamples, label, prediction)``."""
        cells = self.labels.astype(np.int64) * self.num_labels + predictions.astype(np.int64)
        one_hot = np.eye(self.num_labels**2)[cells]
        return np.asarray(self.counts @ one_hot).reshape(-1, self.num_labels, self.num_labels)

    def _micro_f1(self, predictions: Array) -> Array:
        truth, found = label_matrix(self.labels, MAX_CLASSES), label_matrix(predictions, MAX_CLASSES)
        sums = self.counts @ np.stack([2 * (truth & found).sum(1), truth.sum(1) + found.sum(1)], axis=1)
        return _resampled_ratio(sums[:, 0], sums[:, 1])

    def _subset_accuracy(self, predictions: Array) -> Array:
        return np.asarray(self.counts @ (predictions == self.labels) / self.counts.sum(1))

    def _pearson(self, predictions: Array) -> Array:
        x, y = predictions - predictions.mean(), self.labels - self.labels.mean()
        sums = self.counts @ np.stack([x, y, x * x, y * y, x * y], axis=1)
        mean_x, mean_y, square_x, square_y, product = sums.T / len(x)
        return _resampled_correlation(product - mean_x * mean_y, (square_x, mean_x), (square_y, mean_y))

    def _spearman(self, predictions: Array) -> Array:
        """Pearson's of the ranks, less their mean, which is the same in every resample."""
        ranks = self._ranks(predictions)
        weighted, square_y = self._label_ranks
        square_x = np.einsum("ij,ij,ij->i", self.counts, ranks, ranks)
        zero = np.zeros(len(ranks))
        return _resampled_correlation(np.einsum("ij,ij->i", weighted, ranks), (square_x, zero), (square_y, zero))

    @cached_property
    def _label_ranks(self) -> tuple[Array, Array]:
        """The labels' ranks times the counts, and the sum of their squares."""
        ranks = self._ranks(self.labels)
        weighted = self.counts * ranks
        return weighted, np.einsum("ij,ij->i", weighted, ranks)

    def _ranks(self, values: Array) -> Array:
        """Mid-ranks of the values in each resample, less their mean."""
        _, group = np.unique(values, return_inverse=True)
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        sizes = np.add.reduceat(self.counts[:, order], starts, axis=1)
        middle = np.cumsum(sizes, axis=1) - (sizes + len(values)) / 2.0
        ranks: Array = middle[:, group]
        return ranks


def _resampled_correlation(covariance: Array, x: tuple[Array, Array], y: tuple[Array, Array]) -> Array:
    """From mean squares and means; zero where a series says nothing, up to rounding."""
    variances = [np.where(s - m * m > 1e-12 * s, s - m * m, 0.0) for s, m in (x, y)]
    return _resampled_ratio(covariance, np.sqrt(variances[0] * variances[1]))


def _resampled_ratio(numerator: Array, denominator: Array) -> Array:
    """Zero where there is nothing to divide by, as the metrics have it."""
    zeros = np.zeros_like(numerator, dtype=np.float64)
    return np.asarray(np.divide(numerator, denominator, out=zeros, where=denominator > 0))


def _resampled_accuracy(confusion: Array) -> Array:
    return np.asarray(np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2)))


def _resampled_f1(confusion: Array) -> Array:
    """Of class 1 for two classes; for more the mean over those that occur."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    both = confusion.sum(1) + confusion.sum(2)
    scores = _resampled_ratio(2.0 * hits, both)
    if confusion.shape[1] == 2:
        return np.asarray(scores[:, 1])
    return np.asarray(scores.sum(1) / (both > 0).sum(1))


def _resampled_matthews(confusion: Array) -> Array:
    """Gorodkin's form for any number of classes, which scikit-learn uses."""
    total, truth, found = confusion.sum((1, 2)), confusion.sum(2), confusion.sum(1)
    covariance = np.trace(confusion, axis1=1, axis2=2) * total - (truth * found).sum(1)
    spread = (total**2 - (truth**2).sum(1)) * (total**2 - (found**2).sum(1))
    return _resampled_ratio(covariance, np.sqrt(spread))


_CONFUSION = {"accuracy": _resampled_accuracy, "f1": _resampled_f1, "matthews": _resampled_matthews}
