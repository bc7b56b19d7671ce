"""Whether files belong together, and whether each agrees with itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import ScoreFile
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.reporting.bootstrap import bootstrap_metric_names, count_reported_classes, resampled_text_headlines
from osrm_cli.tasks import metrics
from osrm_cli.tasks.label_sets import MAX_CLASSES
from osrm_cli.tasks.task import MULTI_LABEL, Task
from osrm_cli.tasks.text.metrics import EXAMPLE_LOSS, EXAMPLE_TOKENS

_TOLERANCE = 0.05  # percent; files of other programs may round
_MAX_CLASSES = 1000


def check_files_comparable(files: Sequence[ScoreFile]) -> None:
    """Check that files can be compared, and that predictions give the scores beside them.

    Raises:
        OsrmError: If not.
    """
    _check_same_examples(files)
    for file in files:
        _check_reported_predictions(file)


def _check_same_examples(files: Sequence[ScoreFile]) -> None:
    """Check that every task was scored on the same examples in all files.

    Raises:
        OsrmError: If it was not: such files cannot be compared.
    """
    first: dict[tuple[str, str], tuple[ScoreFile, Any]] = {}
    for file in files:
        for task, score in _scores_of_file(file):
            names = " and ".join(score.per_example)
            before, known = first.setdefault((task, "metrics"), (file, names)) if names else (file, names)
            if known != names:
                raise OsrmError(
                    f"{file.name} and {before.name} judge '{task}' by {names} and by {known}",
                    "compare files that were all made with answers, or all without",
                )
            for what in ("examples", "sha256", "labels"):
                value = getattr(score, what)
                before, known = first.setdefault((task, what), (file, value)) if value else (file, value)
                if known != value:
                    number = f"{value} and {known} examples" if what == "examples" else "different examples"
                    raise OsrmError(
                        f"{file.name} and {before.name} were scored on {number} of '{task}'",
                        "compare files of one split and one --limit",
                    )


def _check_reported_predictions(file: ScoreFile) -> None:
    """Check that predictions give the scores that stand beside them.

    Raises:
        OsrmError: If they do not.
    """
    for task, score in _scores_of_file(file):
        if score.per_example:
            _check_example_scores(file.name, task, score)
        if not score.predictions or not score.labels:
            continue
        if len(score.labels) != len(score.predictions):
            raise OsrmError(
                f"{file.name} has {len(score.predictions)} predictions and {len(score.labels)} labels of '{task}'"
            )
        names = bootstrap_metric_names(score)
        if not names or not any(set(names) <= set(kind) for kind in metrics.KINDS):
            raise OsrmError(f"{file.name}: the metrics of '{task}' do not go together: {', '.join(score.metrics)}")
        if names[0] not in metrics.REGRESSION_METRICS:
            limit = 1 << MAX_CLASSES if names[0] in metrics.MULTI_LABEL_METRICS else _MAX_CLASSES
            for what in ("predictions", "labels"):
                _check_reported_classes(getattr(score, what), limit, f"{file.name}: {what} of '{task}'")
        _check_score_from_predictions(file.name, task, score, _recompute_reported_score(score))


def _check_example_scores(name: str, task: str, score: TaskScore) -> None:
    """Check that what each example of a text task scores gives its primary score."""
    for metric, values in score.per_example.items():
        if len(values) != score.examples:
            raise OsrmError(f"{name} has {len(values)} values of '{metric}' for {score.examples} examples of '{task}'")
        least = 1 if metric == EXAMPLE_TOKENS else 0
        if min(values, default=least) < least:
            raise OsrmError(f"{name}: '{metric}' of '{task}' holds {min(values):g}, expected {least} or more")
    if not score.examples or (EXAMPLE_LOSS in score.per_example) != (EXAMPLE_TOKENS in score.per_example):
        raise OsrmError(f"{name}: 'per_example' of '{task}' is incomplete", "make the file anew")
    (found,) = resampled_text_headlines(np.ones((1, score.examples)), score.per_example)
    _check_score_from_predictions(name, task, score, found)


def _check_score_from_predictions(name: str, task: str, score: TaskScore, found: float) -> None:
    if abs(found - score.headline) > _TOLERANCE:
        raise OsrmError(
            f"{name}: the predictions of '{task}' give {found:.2f}, its score says {score.headline:.2f}",
            "make the file anew",
        )


def _check_reported_classes(values: Sequence[float], limit: int, what: str) -> None:
    wrong = next((value for value in values if not 0 <= value < limit or value != int(value)), None)
    if wrong is not None:
        raise OsrmError(f"{what} hold {wrong:g}, expected classes from 0 on", "make the file anew")


def _scores_of_file(file: ScoreFile) -> Iterator[tuple[str, TaskScore]]:
    for scores in (file.single, *(merge.test for merge in file.merges)):
        yield from scores.items()


def _recompute_reported_score(score: TaskScore) -> float:
    """The primary score that the predictions give, in percent."""
    names, labels, predictions = bootstrap_metric_names(score), np.asarray(score.labels), np.asarray(score.predictions)
    if names[0] in metrics.MULTI_LABEL_METRICS:
        task = Task("", ("text",), tuple(range(MAX_CLASSES)), names, kind=MULTI_LABEL)
    else:
        is_score = names[0] in metrics.REGRESSION_METRICS
        classes = None if is_score else tuple(range(count_reported_classes(labels, predictions)))
        task = Task("", ("text",), classes, names)
    return metrics.primary_score(task, metrics.compute_task_scores(task, predictions, labels))
