"""A task's headline on many resamples of its examples at once.

A resample is a row of counts: how often each example was drawn. Metrics of classes follow from the counts in the
confusion matrix, correlations from weighted moments, Spearman's from weighted mid-ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osrm_cli.tasks.metrics import REGRESSION_METRICS

Array = NDArray[Any]

_ENTRIES = 4_000_000  # counts held at once


def draws(generator: np.random.Generator, examples: int, resamples: int) -> Iterator[Array]:
    """Counts of examples drawn with replacement, shape ``(some, examples)``, ``resamples`` rows in all."""
    at_once = max(1, _ENTRIES // examples)
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = generator.integers(0, examples, (rows, examples)) + examples * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * examples).reshape(rows, examples)
        yield counts.astype(np.float64)  # products of integers would not go through BLAS


@dataclass(frozen=True)
class Resamples:
    """Many resamples of one task's examples.

    Attributes:
        counts: How often each example was drawn; shape ``(resamples, examples)``.
        labels: Shape ``(examples,)``.
        num_labels: Number of classes; of no concern to correlations.
    """

    counts: Array
    labels: Array
    num_labels: int = 2

    def headlines(self, names: Sequence[str], predictions: Array) -> Array:
        """The mean of the metrics on each resample, in percent.

        Args:
            names: Metrics of ``language.metrics``.
            predictions: Shape ``(examples,)``.

        Returns:
            Shape ``(resamples,)``.
        """
        if set(names) <= set(REGRESSION_METRICS):
            correlations = {"pearson": self._pearson, "spearman": self._spearman}
            found = [correlations[name](predictions) for name in names]
        else:
            confusion = self._confusion(predictions)
            found = [_CONFUSION[name](confusion) for name in names]
        return np.asarray(100.0 * np.mean(found, axis=0))

    def _confusion(self, predictions: Array) -> Array:
        """Shape ``(resamples, label, prediction)``."""
        cells = self.labels.astype(np.int64) * self.num_labels + predictions.astype(np.int64)
        one_hot = np.eye(self.num_labels**2)[cells]
        return np.asarray(self.counts @ one_hot).reshape(-1, self.num_labels, self.num_labels)

    def _pearson(self, predictions: Array) -> Array:
        x, y = predictions - predictions.mean(), self.labels - self.labels.mean()
        sums = self.counts @ np.stack([x, y, x * x, y * y, x * y], axis=1)
        mean_x, mean_y, square_x, square_y, product = sums.T / len(x)
        return _correlation(product - mean_x * mean_y, (square_x, mean_x), (square_y, mean_y))

    def _spearman(self, predictions: Array) -> Array:
        """Pearson's of the ranks, less their mean, which is the same in every resample."""
        ranks = self._ranks(predictions)
        weighted, square_y = self._label_ranks
        square_x = np.einsum("ij,ij,ij->i", self.counts, ranks, ranks)
        zero = np.zeros(len(ranks))
        return _correlation(np.einsum("ij,ij->i", weighted, ranks), (square_x, zero), (square_y, zero))

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


def _correlation(covariance: Array, x: tuple[Array, Array], y: tuple[Array, Array]) -> Array:
    """From mean squares and means; zero where a series says nothing, up to rounding."""
    variances = [np.where(s - m * m > 1e-12 * s, s - m * m, 0.0) for s, m in (x, y)]
    return _ratio(covariance, np.sqrt(variances[0] * variances[1]))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Zero where there is nothing to divide by, as the metrics have it."""
    zeros = np.zeros_like(numerator, dtype=np.float64)
    return np.asarray(np.divide(numerator, denominator, out=zeros, where=denominator > 0))


def _accuracy(confusion: Array) -> Array:
    return np.asarray(np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2)))


def _f1(confusion: Array) -> Array:
    """Of class 1 for two classes; for more the mean over those that occur."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    both = confusion.sum(1) + confusion.sum(2)
    scores = _ratio(2.0 * hits, both)
    if confusion.shape[1] == 2:
        return np.asarray(scores[:, 1])
    return np.asarray(scores.sum(1) / (both > 0).sum(1))


def _matthews(confusion: Array) -> Array:
    """Gorodkin's form for any number of classes, which scikit-learn uses."""
    total, truth, found = confusion.sum((1, 2)), confusion.sum(2), confusion.sum(1)
    covariance = np.trace(confusion, axis1=1, axis2=2) * total - (truth * found).sum(1)
    spread = (total**2 - (truth**2).sum(1)) * (total**2 - (found**2).sum(1))
    return _ratio(covariance, np.sqrt(spread))


_CONFUSION = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}
