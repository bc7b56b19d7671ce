"""Columns as texts and labels, each value checked, so that an error names its line."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.file_encoding import is_encodable
from osrm_cli.tasks.table import Table
from osrm_cli.tasks.task import Label

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_LARGEST = 10**300  # beyond it an integer is as good as infinite: it makes no float
MAX_SCORE = 1e15  # in size: squares of gradients stay below the largest number in single precision
NO_LABEL = (None, "", "-", -1)  # nothing; SNLI's sign for no agreement; the hub's for unlabelled


def parse_number(value: Any) -> int | float | None:
    """A number, or the number that a string spells (csv knows only strings); ``None`` for anything else."""
    if isinstance(value, (bool, int)):
        return int(value) if abs(value) < _LARGEST else math.inf if value > 0 else -math.inf
    if isinstance(value, float):
        return value
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
        return None
    number = float(value)
    return int(value) if value.strip().lstrip("+-").isdecimal() and abs(number) < _LARGEST else number


def normalize_label(value: Any) -> Any:
    """A label as it is compared: words without blanks around them, whole numbers as integers."""
    if isinstance(value, str):
        value = value.strip()
    number = parse_number(value)
    if number is None:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else number


def parse_texts(table: Table, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of each row; a number is its digits, nothing is an empty text.

    Args:
        table: The rows.
        columns: Their texts, as the table spells them.

    Raises:
        OsrmError: If a column holds anything but text.
    """
    parsed = [list(_parse_text_column(table, column)) for column in columns]
    return list(zip(*parsed, strict=True))


def _parse_text_column(table: Table, column: str) -> Iterator[str]:
    for row, value in enumerate(table.columns[column]):
        if isinstance(value, str):
            if not value.isascii() and not is_encodable(value):
                raise OsrmError(f"{table.locate(row)}: column '{column}' holds half a surrogate pair, expected text")
            yield value
        elif value is None:
            yield ""
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield str(value)
        else:
            raise OsrmError(
                f"{table.locate(row)}: column '{column}' holds {describe_table_value(value)}, expected text"
            )


def parse_classes(table: Table, column: str, labels: Sequence[str | int], codes: bool) -> list[Label | None]:
    """The index of each row's class, ``None`` where a row says that it has none.

    Args:
        table: The rows.
        column: Their label, as the table spells it.
        labels: The classes.
        codes: Whether a row may hold the index itself in place of a name.

    Raises:
        OsrmError: If a row's label is none of the classes.
    """
    index: dict[Any, int] = {}
    if codes and not any(isinstance(normalize_label(label), (int, float)) for label in labels):
        index = {position: position for position in range(len(labels))}
    index |= {label: position for position, label in enumerate(labels)}
    for position, label in enumerate(labels):
        index.setdefault(normalize_label(label), position)
    known: dict[Any, int | None] = {}
    parsed: list[Label | None] = []
    for row, value in enumerate(table.columns[column]):
        key = (type(value), value) if value.__hash__ else None
        if key not in known:
            known[key] = _find_label_class(table, row, value, index)
        parsed.append(known[key])
    return parsed


def _find_label_class(table: Table, row: int, value: Any, index: dict[Any, int]) -> int | None:
    for form in (value, normalize_label(value)) if value.__hash__ else ():
        if form in index:
            return index[form]
    if is_no_label(value):
        return None
    _check_finite_label(table, row, parse_number(value))
    raise OsrmError(
        f"{table.locate(row)}: label {describe_table_value(value)} is out of range, "
        f"expected one of: {_join_labels(index)}",
        "correct the row, or list the classes as labels = [...] in the task's task.toml",
    )


def is_no_label(value: Any) -> bool:
    """Whether a value stands for a row that has no label."""
    return bool(value.__hash__) and normalize_label(value) in NO_LABEL


def parse_scores(table: Table, column: str) -> list[Label | None]:
    """Each row's label as a number, ``None`` where it has none.

    Raises:
        OsrmError: If it is something else, not finite, or beyond ``MAX_SCORE``.
    """
    parsed: list[Label | None] = []
    for row, value in enumerate(table.columns[column]):
        score = parse_number(value)
        if score is None and value not in (None, "", "-"):
            raise OsrmError(
                f"{table.locate(row)}: label {describe_table_value(value)} is not a number, expected a score"
            )
        _check_finite_label(table, row, score)
        if score is not None and abs(score) > MAX_SCORE:
            raise OsrmError(
                f"{table.locate(row)}: label {describe_table_value(value)} is too large for a model's single "
                f"precision, expected at most {MAX_SCORE:g} in size",
                "correct the row, or give scores in a larger unit",
            )
        parsed.append(None if score is None else float(score))
    return parsed


def is_unlabelled(table: Table, column: str) -> bool:
    """Whether no row has a label, as in the public test splits of GLUE."""
    return all(map(is_no_label, table.columns[column]))


def _check_finite_label(table: Table, row: int, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise OsrmError(f"{table.locate(row)}: label {value} is not a finite number")


def describe_table_value(value: Any) -> str:
    """A value for a message of one line."""
    text = "nothing" if value is None or value == "" else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _join_labels(index: dict[Any, int]) -> str:
    labels = [str(label) for label in index]
    return ", ".join(labels if len(labels) <= 12 else [*labels[:12], "..."])
