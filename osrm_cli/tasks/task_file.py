"""A task of the user's own: what ``task.toml`` says about it, and what its training rows tell."""

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.parsing import parse_number
from osrm_cli.tasks.readers import SourceRow

LABEL_COLUMNS = ("label", "labels", "score", "target", "class")
ID_COLUMNS = ("idx", "id", "index", "guid")
MAX_CLASSES = 200  # more than this is a score, an identifier or a text in the wrong column

TaskFields = dict[str, Any]  # the keys of task.toml; ``labels`` is None for regression


def read_task_file(path: Path) -> TaskFields:
    """The facts of a ``task.toml``; none if there is no such file.

    Raises:
        OsrmError: If the file is no TOML, or holds an unknown key or a value of the wrong kind.
    """
    if not path.is_file():
        return {}
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OsrmError(f"{path} is no TOML file: {error}") from None
    if "metrics" not in told and "metric" in told:  # most tasks have one
        told["metrics"] = told.pop("metric")
    checks = {
        "columns": (_string_list_check(1, 2), "one or two column names"),
        "label_column": (lambda value: isinstance(value, str), "a column name"),
        "labels": (_are_labels, 'two or more classes, or "float" for regression'),
        "metrics": (_string_list_check(1, 5), "one or more metric names"),
        "max_length": (lambda value: type(value) is int and value > 0, "a number of tokens"),
    }
    for key, value in told.items():
        if key not in checks:
            raise OsrmError(f"{path}: unknown key '{key}'", f"the keys are: {', '.join(checks)}")
        check, expected = checks[key]
        if not check(value):
            raise OsrmError(f"{path}: {key} is {value!r}, expected {expected}")
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    for key in ("columns", "metrics"):
        if isinstance(facts.get(key), str):
            facts[key] = (facts[key],)
    if facts.get("labels") == "float":
        facts["labels"] = None
    return facts


def _string_list_check(least: int, most: int) -> Any:
    """A check for a string, or for a list of ``least`` to ``most`` different ones."""

    def check(value: Any) -> bool:
        values = [value] if isinstance(value, str) else value
        strings = isinstance(values, list) and all(isinstance(each, str) for each in values)
        return strings and least <= len(values) <= most and len(set(values)) == len(values)

    return check


def _are_labels(value: Any) -> bool:
    if isinstance(value, list):
        return {type(each) for each in value} in ({str}, {int}) and 1 < len(value) == len(set(value))
    return bool(value == "float")


def add_defaults(told: TaskFields, rows: Sequence[SourceRow]) -> TaskFields:
    """Fill in metrics and label column where columns and labels are known already."""
    metrics = ("pearson", "spearman") if told["labels"] is None else ("accuracy",)
    return {"metrics": metrics, "label_column": _find_label_column(rows) or "label", **told}


def _find_label_column(rows: Sequence[SourceRow]) -> str | None:
    return next((name for name in LABEL_COLUMNS if name in rows[0].values), None)


def check_metrics(facts: TaskFields, path: Path) -> None:
    """Check that the metrics fit the kind of label.

    Raises:
        OsrmError: Naming those that do.
    """
    from osrm_cli.tasks.metrics import CLASSIFICATION_METRICS, REGRESSION_METRICS

    known = REGRESSION_METRICS if facts["labels"] is None else CLASSIFICATION_METRICS
    for metric in facts["metrics"]:
        if metric not in known:
            kind = "regression" if facts["labels"] is None else "classes"
            raise OsrmError(f"{path}: '{metric}' is no metric for {kind}", f"choose from: {', '.join(known)}")


def infer_schema(told: TaskFields, rows: Sequence[SourceRow], source: str) -> TaskFields:
    """Complete ``told`` from training rows: text columns, label column, kind of label, metrics.

    Raises:
        OsrmError: If something cannot be told without guessing.
    """
    found = list(rows[0].values)
    label = told.get("label_column") or _find_label_column(rows)
    if label not in found:
        wanted = f"'{label}'" if label else f"one of {', '.join(LABEL_COLUMNS)}"
        raise OsrmError(
            f"{source} has no label column, expected {wanted}, found: {', '.join(found)}",
            'say label_column = "NAME" in a task.toml beside it',
        )
    columns = told.get("columns") or _infer_text_columns(rows, label, source)
    labels = told["labels"] if "labels" in told else _infer_classes(rows, label, source)
    return add_defaults({**told, "label_column": label, "columns": columns, "labels": labels}, rows)


def _infer_text_columns(rows: Sequence[SourceRow], label: str, source: str) -> tuple[str, ...]:
    def is_text(name: str) -> bool:
        values = [row.values.get(name) for row in rows]
        return all(isinstance(value, str) for value in values) and any(parse_number(value) is None for value in values)

    names = tuple(name for name in rows[0].values if name != label and name.lower() not in ID_COLUMNS and is_text(name))
    if not 1 <= len(names) <= 2:
        raise OsrmError(
            f"{source} has {len(names)} text columns, expected one or two: {', '.join(names or rows[0].values)}",
            'say columns = ["NAME"] or ["FIRST", "SECOND"] in a task.toml beside it',
        )
    return names


def _infer_classes(rows: Sequence[SourceRow], column: str, source: str) -> tuple[str | int, ...] | None:
    """The classes in order, or ``None`` for regression: any label with a decimal point makes it that."""
    values = [row.values.get(column) for row in rows]
    numbers = [parse_number(value) for value in values]
    for row, value, this in zip(rows, values, numbers, strict=True):
        if value is None or value == "" or isinstance(value, (list, dict)):
            raise OsrmError(f"{source}:{row.line}: the label is {value!r}, expected a class or a number")
        if this is not None and not math.isfinite(this):
            raise OsrmError(f"{source}:{row.line}: the label is {value}, expected a finite number")
        if (this is None) != (numbers[0] is None):
            raise OsrmError(
                f"{source}:{row.line}: the label is {value!r}, but line {rows[0].line} has {values[0]!r}",
                "make all words or all numbers, or say labels = [...] in a task.toml beside it",
            )
    if any(isinstance(this, float) for this in numbers):
        return None
    classes: tuple[Any, ...] = tuple(sorted(set(values if numbers[0] is None else numbers)))
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise OsrmError(
            f"{source} has {len(classes)} different labels in column '{column}', expected 2 to {MAX_CLASSES}",
            'say label_column = "NAME", or labels = "float" for regression, in a task.toml beside it',
        )
    return classes
