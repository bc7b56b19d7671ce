"""The values of rows as texts and labels, each checked, so that an error names its line."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.readers import SourceRow

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_UNLABELLED = (None, "", -1, "-1")  # GLUE's test splits say -1


def parse_number(value: Any) -> int | float | None:
    """A number, or the number that a string spells (csv knows only strings); ``None`` for anything else."""
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float):
        return value
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
        return None
    return int(value) if value.strip().lstrip("+-").isdecimal() else float(value)


def parse_texts(rows: Sequence[SourceRow], columns: tuple[str, ...], source: str) -> Iterator[tuple[str, ...]]:
    """The texts of each row.

    Raises:
        OsrmError: If a row lacks a column, or holds anything but text in it.
    """
    for row in rows:
        found = tuple(_get_value(row, column, source) for column in columns)
        for column, text in zip(columns, found, strict=True):
            if not isinstance(text, str):
                raise OsrmError(f"{source}:{row.line}: column '{column}' holds {_describe_value(text)}, expected text")
            if not text.isascii() and not _is_encodable(text):
                raise OsrmError(f"{source}:{row.line}: column '{column}' holds half a surrogate pair, expected text")
        yield found


def parse_classes(
    rows: Sequence[SourceRow], column: str, labels: tuple[str | int, ...], codes: bool, source: str
) -> Iterator[int]:
    """The index of each row's class; with ``codes``, a row may hold the index itself in place of a name.

    Raises:
        OsrmError: If a row's label is none of the classes.
    """
    index: dict[Any, int] = {label: position for position, label in enumerate(labels)}
    if codes and all(isinstance(label, str) for label in labels):
        index = {**{position: position for position in range(len(labels))}, **index}
    for row in rows:
        value = _get_value(row, column, source)
        known = value if isinstance(value, str) and value in index else parse_number(value)
        if known not in index:
            _check_finite(row, parse_number(value), source)
            raise OsrmError(
                f"{source}:{row.line}: label {_describe_value(value)} is out of range, "
                f"expected one of: {_join_labels(index)}",
                "correct the row, or list the classes as labels = [...] in the task's task.toml",
            )
        yield index[known]


def parse_scores(rows: Sequence[SourceRow], column: str, source: str) -> Iterator[float]:
    """Each row's label as a number.

    Raises:
        OsrmError: If it is none, or not finite.
    """
    for row in rows:
        value = _get_value(row, column, source)
        score = parse_number(value)
        if score is None:
            raise OsrmError(f"{source}:{row.line}: label {_describe_value(value)} is no number, expected a score")
        _check_finite(row, score, source)
        yield float(score)


def is_unlabelled(rows: Sequence[SourceRow], column: str) -> bool:
    """Whether no row has a label, as in the public test splits of GLUE."""
    return all(row.values.get(column) in _UNLABELLED for row in rows)


def _get_value(row: SourceRow, column: str, source: str) -> Any:
    try:
        return row.values[column]
    except KeyError:
        raise OsrmError(
            f"{source}:{row.line}: no column '{column}', found: {', '.join(row.values)}",
            "columns and label_column can be set in the task's task.toml",
        ) from None


def _check_finite(row: SourceRow, value: float | None, source: str) -> None:
    if value is not None and not math.isfinite(value):
        raise OsrmError(f"{source}:{row.line}: label {value} is no finite number")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe_value(value: Any) -> str:
    """A value for a message of one line."""
    shown = "nothing" if value is None or value == "" else repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _join_labels(index: dict[Any, int]) -> str:
    listed = [str(label) for label in index]
    return ", ".join(listed if len(listed) <= 12 else [*listed[:12], "..."])
