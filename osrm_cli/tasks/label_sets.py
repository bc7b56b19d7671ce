"""Rows with several labels: each label is a set of classes, kept as an integer with a bit for each class."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.parsing import describe_table_value, normalize_label
from osrm_cli.tasks.table import Table
from osrm_cli.tasks.task import Label, Task

MAX_CLASSES = 50  # JSON's numbers hold integers of so many bits exactly


def label_set(classes: Iterable[int]) -> int:
    """The label of a row that is of some classes, by their indices."""
    return sum(1 << index for index in set(classes))


def label_matrix(labels: ArrayLike, count: int) -> NDArray[np.int64]:
    """Which classes each label has, ``(n, count)`` of 0 and 1."""
    return (np.asarray(labels, dtype=np.int64)[..., None] >> np.arange(count)) & 1


def label_sets_from_logits(logits: NDArray[Any]) -> NDArray[np.int64]:
    """The classes whose logit is above 0, ``(n,)``.

    Args:
        logits: ``(n, classes)``.
    """
    return (logits > 0).astype(np.int64) @ (1 << np.arange(logits.shape[1]))


def holds_label_lists(table: Table, column: str) -> bool:
    """Whether a column holds lists of labels."""
    return next((isinstance(value, list) for value in table.columns[column] if value is not None), False)


def infer_label_classes(table: Table, column: str) -> tuple[str | int, ...]:
    """The classes that occur in a column of lists, in order.

    Raises:
        OsrmError: If a value is no list of words or of whole numbers, or there are too few or too many.
    """
    kinds: dict[Any, type] = {}
    for row, value in enumerate(table.columns[column]):
        for item in _split_labels(table, row, value):
            kinds[normalize_label(item)] = int if isinstance(normalize_label(item), int) else str
    if len(set(kinds.values())) > 1:
        raise OsrmError(
            f"{table.source}: the labels are words and numbers", "say labels = [...] in a task.toml beside it"
        )
    if not 2 <= len(kinds) <= MAX_CLASSES:
        raise OsrmError(
            f"{table.source} has {len(kinds)} different labels in column '{column}', expected 2 to {MAX_CLASSES}",
            "say labels = [...] in a task.toml beside it",
        )
    return tuple(sorted(kinds))


def find_binary_columns(table: Table) -> list[str]:
    """The columns that hold nothing but 0 and 1."""
    return [name for name, values in table.columns.items() if all(normalize_label(value) in (0, 1) for value in values)]


def parse_label_sets(
    table: Table, columns: Sequence[str], labels: Sequence[str | int], codes: bool
) -> list[Label | None]:
    """Each row's label set; ``None`` where a row has none.

    Args:
        table: The rows.
        columns: One column of lists, or a column of 0 and 1 for each class.
        labels: The classes.
        codes: Whether a list may hold indices in place of names.

    Raises:
        OsrmError: If a value is something else.
    """
    if len(columns) not in (1, len(labels)):
        raise OsrmError(
            f"{table.source}: {len(columns)} label columns and {len(labels)} classes", "name one column for each class"
        )
    if len(columns) > 1:
        return [_label_set_of_flags(table, row, columns) for row in range(len(table))]
    index: dict[Any, int] = {}
    if codes and not any(isinstance(normalize_label(label), int) for label in labels):
        index = {position: position for position in range(len(labels))}
    index |= {normalize_label(label): position for position, label in enumerate(labels)}
    sets: list[Label | None] = []
    for row, value in enumerate(table.columns[columns[0]]):
        found = [index.get(normalize_label(item)) for item in _split_labels(table, row, value)]
        if None in found:
            raise OsrmError(
                f"{table.locate(row)}: label {describe_table_value(value)} is out of range, expected some of: "
                f"{', '.join(map(str, labels[:12]))}",
                "correct the row, or list the classes as labels = [...] in the task's task.toml",
            )
        sets.append(None if value is None else label_set(each for each in found if each is not None))
    return sets


def _label_set_of_flags(table: Table, row: int, columns: Sequence[str]) -> int | None:
    flags = [normalize_label(table.columns[name][row]) for name in columns]
    if all(flag in (None, "") for flag in flags):
        return None
    for name, flag in zip(columns, flags, strict=True):
        if flag not in (0, 1):
            raise OsrmError(f"{table.locate(row)}: column '{name}' holds {describe_table_value(flag)}, expected 0 or 1")
    return label_set(position for position, flag in enumerate(flags) if flag)


def _split_labels(table: Table, row: int, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise OsrmError(f"{table.locate(row)}: the label is {describe_table_value(value)}, expected a list of classes")
    return value


def find_label_without_contrast(task: Task, labels: Sequence[Label]) -> str | int | None:
    """A class that no head can be fitted to: it has no row; of several a row, it holds for each or for none."""
    if task.labels is None:
        return None
    if task.is_multi_label:
        means = label_matrix(labels, task.num_labels).mean(0)
        return next((name for name, mean in zip(task.labels, means, strict=True) if mean in (0, 1)), None)
    present = set(labels)
    return next((name for index, name in enumerate(task.labels) if index not in present), None)
