"""A task's headline on many resamples of its examples at once.

A resample is a row of counts: how often each example was drawn. Metrics of classes follow from the counts in the
confusion matrix, correlations from weighted moments, Spearman's from weighted mid-ranks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osrm_cli.language.metrics import REGRESSION

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


def headlines(names: Sequence[str], counts: Array, predictions: Array, labels: Array, num_labels: int) -> Array:
    """The mean of the metrics on each resample, in percent.

    Args:
        names: Metrics of ``language.metrics``.
        counts: Shape ``(resamples, examples)``.
        predictions: Shape ``(examples,)``.
        labels: Shape ``(examples,)``.
        num_labels: Number of classes; of no concern to correlations.

    Returns:
        Shape ``(resamples,)``.
    """
    if set(names) <= set(REGRESSION):
        found = [_CORRELATIONS[name](counts, predictions, labels) for name in names]
    else:
        confusion = _confusion(counts, predictions, labels, num_labels)
        found = [_CONFUSION[name](confusion) for name in names]
    return np.asarray(100.0 * np.mean(found, axis=0))


def _confusion(counts: Array, predictions: Array, labels: Array, num_labels: int) -> Array:
    """Shape ``(resamples, label, prediction)``."""
    cells = labels.astype(np.int64) * num_labels + predictions.astype(np.int64)
    one_hot = np.eye(num_labels**2)[cells]
    return np.asarray(counts @ one_hot).reshape(-1, num_labels, num_labels)


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


def _pearson(counts: Array, predictions: Array, labels: Array) -> Array:
    return _correlation(counts, predictions[None] - predictions.mean(), labels[None] - labels.mean())


def _spearman(counts: Array, predictions: Array, labels: Array) -> Array:
    return _correlation(counts, _ranks(counts, predictions), _ranks(counts, labels))


def _correlation(counts: Array, x: Array, y: Array) -> Array:
    """Pearson's, weighted by counts; ``x`` and ``y`` ``(1 or resamples, examples)``."""
    total = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / total
    y = y - (counts * y).sum(1, keepdims=True) / total
    variance = (counts * x**2).sum(1) * (counts * y**2).sum(1)
    return _ratio((counts * x * y).sum(1), np.sqrt(np.where(variance > 1e-20, variance, 0.0)))


def _ranks(counts: Array, values: Array) -> Array:
    """Mid-ranks of the values in each resample."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    middle = np.cumsum(sizes, axis=1) - (sizes - 1) / 2.0
    ranks: Array = middle[:, group]
    return ranks


_CONFUSION = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}
_CORRELATIONS = {"pearson": _pearson, "spearman": _spearman}
