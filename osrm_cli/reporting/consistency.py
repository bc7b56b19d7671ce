"""Whether files belong together, and whether each agrees with itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from osrm_cli.errors import OsrmError
from osrm_cli.reporting.score_files import Array, File, Scored
from osrm_cli.tasks.metrics import REGRESSION_METRICS, compute_scores, primary_score
from osrm_cli.tasks.task import Task

_TOLERANCE = 0.05  # percent; files of other programs may round


def same_examples(files: Sequence[File]) -> None:
    """Check that every task was scored on the same examples in all files.

    Raises:
        OsrmError: If it was not: such files cannot be compared.
    """
    first: dict[tuple[str, str], tuple[File, Any]] = {}
    for file in files:
        for task, what, value in _about(file):
            before, known = first.setdefault((task, what), (file, value))
            if known != value:
                told = f"{value} and {known} examples" if what == "number" else "different examples"
                raise OsrmError(
                    f"{file.name} and {before.name} were scored on {told} of '{task}'",
                    "compare files of one split and one --limit",
                )


def _about(file: File) -> Iterator[tuple[str, str, Any]]:
    for scores in (file.single, *(merge.tasks for merge in file.merges)):
        for task, score in scores.items():
            yield task, "number", score.examples
            yield task, "sha256", score.sha256
    for task, labels in file.labels.items():
        yield task, "labels", labels.tolist()


def predictions_fit(file: File) -> None:
    """Check that predictions give the scores that stand beside them.

    Raises:
        OsrmError: If they do not.
    """
    for scores in (file.single, *(merge.tasks for merge in file.merges)):
        for task, score in scores.items():
            if score.predictions is None or task not in file.labels:
                continue
            labels = file.labels[task]
            if len(labels) != len(score.predictions):
                raise OsrmError(
                    f"{file.name} has {len(score.predictions)} predictions and {len(labels)} labels of '{task}'"
                )
            found = headline(score, labels)
            if abs(found - score.headline) > _TOLERANCE:
                raise OsrmError(
                    f"{file.name}: the predictions of '{task}' give {found:.2f}, its score says {score.headline:.2f}",
                    "make the file anew",
                )


def headline(score: Scored, labels: Array) -> float:
    """The score that the predictions give, in percent."""
    classes = None if score.metrics[0] in REGRESSION_METRICS else tuple(range(num_labels(score.predictions, labels)))
    task = Task("", ("text",), classes, score.metrics)
    return primary_score(task, compute_scores(task, np.asarray(score.predictions), labels))


def num_labels(*series: Array | None) -> int:
    """Number of classes that occur, at least two."""
    return max(2, *(1 + int(values.max()) for values in series if values is not None))
