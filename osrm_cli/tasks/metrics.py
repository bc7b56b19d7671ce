"""GLUE's metrics, through scikit-learn and scipy, and two for several labels a row; in percent.

Both are imported where they compute: who reads a task asks for the metrics' names, and would wait a second for them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.label_sets import label_matrix, label_sets_from_logits
from osrm_cli.tasks.task import MULTI_LABEL, Task

Array = NDArray[Any]


def _accuracy(predictions: Array, labels: Array, num_labels: int) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _f1(predictions: Array, labels: Array, num_labels: int) -> float:
    """Of class 1 for two classes, as GLUE has it; the mean over classes for more."""
    from sklearn.metrics import f1_score

    average = "binary" if num_labels == 2 else "macro"
    return float(f1_score(labels, predictions, average=average, zero_division=0))


def _matthews(predictions: Array, labels: Array, num_labels: int) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _is_constant(predictions, labels) else float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: Array, labels: Array, num_labels: int) -> float:
    from scipy.stats import pearsonr

    return 0.0 if _is_constant(predictions, labels) else float(pearsonr(predictions, labels).statistic)


def _spearman(predictions: Array, labels: Array, num_labels: int) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _is_constant(predictions, labels) else float(spearmanr(predictions, labels).statistic)


def _micro_f1(predictions: Array, labels: Array, num_labels: int) -> float:
    """Over all classes of all rows together; 0 where none holds and none is found."""
    found, truth = label_matrix(predictions, num_labels), label_matrix(labels, num_labels)
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def _subset_accuracy(predictions: Array, labels: Array, num_labels: int) -> float:
    """Share of the rows whose every class is right."""
    return float((predictions == labels).mean())


def _is_constant(*series: Array) -> bool:
    """Whether one of the series says nothing: the libraries would warn, and some return NaN."""
    return any(np.ptp(values) <= 1e-12 * np.abs(values).max() for values in series)


CLASSIFICATION_METRICS: dict[str, Callable[[Array, Array, int], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
}
REGRESSION_METRICS: dict[str, Callable[[Array, Array, int], float]] = {"pearson": _pearson, "spearman": _spearman}
MULTI_LABEL_METRICS: dict[str, Callable[[Array, Array, int], float]] = {
    "micro_f1": _micro_f1,
    "subset_accuracy": _subset_accuracy,
}
KINDS = (CLASSIFICATION_METRICS, REGRESSION_METRICS, MULTI_LABEL_METRICS)
METRICS = CLASSIFICATION_METRICS | REGRESSION_METRICS | MULTI_LABEL_METRICS


def predictions_from_logits(task: Task, logits: ArrayLike) -> Array:
    """A model's answers: the class with the largest logit, the set of those above 0, or the one output as it is.

    Args:
        task: The task.
        logits: Shape ``(examples, num_labels)``; DeBERTa returns ``(examples,)`` for one label.

    Raises:
        OsrmError: If a logit is NaN or infinite.
    """
    outputs = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(outputs).all():
        raise OsrmError(
            f"the model's outputs on '{task.name}' hold NaN or infinity", "its training diverged: try a lower --lr"
        )
    if task.kind == MULTI_LABEL:
        return label_sets_from_logits(outputs)
    return outputs.argmax(axis=1) if task.labels else outputs.reshape(-1)


def compute_task_scores(task: Task, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """The task's metrics, each times 100.

    Args:
        task: The task.
        predictions: Class indices, sets of them, or scores; shape ``(examples,)``.
        labels: The truth, likewise.
    """
    kind = np.float64 if task.regression else np.int64
    found, truth = np.asarray(predictions, dtype=kind), np.asarray(labels, dtype=kind)
    return {name: 100.0 * METRICS[name](found, truth, task.num_labels) for name in task.metrics}


def primary_score(task: Task, scores: Mapping[str, float]) -> float:
    """The one number a task is judged by: the mean of its metrics."""
    return sum(scores[name] for name in task.metrics) / len(task.metrics)
