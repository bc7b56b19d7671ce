"""Files to tables: jsonl, json, csv, tsv and parquet, each plain or ``.gz``.

Text formats are read with the standard library and parquet with pyarrow, which ``datasets`` brings along anyway.
``datasets`` itself would copy the file into its cache before the first row, and its errors name no line.
"""

import json
import re
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.delimited import read_csv, read_tsv
from osrm_cli.tasks.file_encoding import (
    WINDOWS,
    check_windows_encoding,
    is_encodable,
    open_task_data_file,
    open_task_data_text,
)
from osrm_cli.tasks.table import Table

SPLIT_STEMS = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val"),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test",),
    "test_matched": ("test_matched",),
    "test_mismatched": ("test_mismatched",),
}
_SPLITS = {stem: split for split, stems in SPLIT_STEMS.items() for stem in stems}


def find_split_files(folder: Path) -> dict[str, Path]:
    """The files of a task's folder by split; a single file of another name is its ``train``.

    Raises:
        OsrmError: If two files hold the same split.
    """
    found: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        named = _FILE_NAME.fullmatch(path.name)
        if named is None or not path.is_file():
            continue
        split = _SPLITS.get(named["stem"])
        if split is None:
            others.append(path)
        elif split in found:
            raise OsrmError(f"{found[split]} and {path} hold the same split, expected one file", "remove one of them")
        else:
            found[split] = path
    # A lone .json may be anything, such as the record of an adapter.
    if not found and len(others) == 1 and ".json" not in others[0].suffixes:
        found["train"] = others[0]
    return {split: found[split] for split in SPLIT_STEMS if split in found}


def read_table(path: Path, limit: int | None = None) -> Table:
    """The rows of a file, or its first ``limit`` rows without reading on.

    Raises:
        OsrmError: If the file or a row cannot be read, or if there is no row.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        table = _read_table_as_text(FORMATS[kind], path, limit)
    except OSError as error:
        raise OsrmError(f"{path} cannot be read: {error.strerror or error}") from None
    if not len(table):
        raise OsrmError(f"{path} holds no rows", "write one example a row")
    for name in table.columns:
        if not is_encodable(name):
            raise OsrmError(f"{path}: the column name {name!r} holds half a surrogate pair")
    return table


def _read_table_as_text(read: "Reader", path: Path, limit: int | None) -> Table:
    """The rows of a file, which is read a second time if it turns out not to be UTF-8."""
    try:
        return read(path, limit, None)
    except UnicodeDecodeError as error:
        warning = check_windows_encoding(path, error)
    table = read(path, limit, WINDOWS)
    table.warnings.append(warning)
    return table


def _read_jsonl(path: Path, limit: int | None, encoding: str | None) -> Table:
    with open_task_data_text(path, encoding) as file:
        columns, lines = _make_task_data_columns(
            islice(_parse_jsonl_rows(path, file), limit and min(limit, sys.maxsize))
        )
    return Table(str(path), columns, lines)


def _parse_jsonl_rows(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OsrmError(f"{path}:{number}: bad JSON: {error}", "write one JSON object a line") from None
        if not isinstance(values, dict):
            raise OsrmError(f"{path}:{number}: found {type(values).__name__}, expected a JSON object")
        yield number, values


def _make_task_data_columns(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
) -> tuple[dict[str, list[Any]], Sequence[int]]:
    """Columns and line numbers of rows that may lack some of the columns."""
    columns: dict[str, list[Any]] = {}
    lines = array("q")
    for line, values in rows:
        for name, value in values.items():
            if (column := columns.get(name)) is None:
                column = columns[name] = []
            if len(column) < len(lines):
                column.extend([None] * (len(lines) - len(column)))
            column.append(value)
        lines.append(line)
    for column in columns.values():
        column.extend([None] * (len(lines) - len(column)))
    return columns, lines


def _read_json(path: Path, limit: int | None, encoding: str | None) -> Table:
    """One JSON value that holds the rows in any of the usual ways, or else JSON lines."""
    with open_task_data_text(path, encoding) as file:
        text = file.read()
    if not text.strip():
        return Table(str(path), {})
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{"):
            return _read_jsonl(path, limit, encoding)
        line = getattr(error, "lineno", 1)
        raise OsrmError(f"{path}:{line}: bad JSON: {error}", "write one array of JSON objects") from None
    return Table(str(path), _find_json_rows(path, content, limit))


def _find_json_rows(path: Path, content: Any, limit: int | None) -> dict[str, list[Any]]:
    """The columns of a JSON value: objects, pairs, or one list or object a column; perhaps under one key.

    Raises:
        OsrmError: If it is something else.
    """
    if isinstance(content, list):
        if content and all(isinstance(row, list) and len(row) == 2 for row in content):
            named = _name_text_label_pair(
                path, [list(column) for column in zip(*content, strict=True)]
            )  # all rows tell, not one
            return {name: values[:limit] for name, values in named.items()}
        rows = content[:limit]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise OsrmError(f"{path}, row {number}: found {type(row).__name__}, expected a JSON object")
        return _make_task_data_columns(enumerate(rows))[0]
    if isinstance(content, dict) and content:
        values = list(content.values())
        if all(isinstance(value, list) for value in values) and len(values) > 1:
            lengths = {len(value) for value in values}
            if len(lengths) == 1 and not any(isinstance(value, dict) for value in values for value in value[:1]):
                return {name: value[:limit] for name, value in content.items()}
        elif all(isinstance(value, dict) for value in values) and len({tuple(value) for value in values}) == 1:
            return {name: list(value.values())[:limit] for name, value in content.items()}
        lists = [name for name, value in content.items() if isinstance(value, list)]
        if len(lists) == 1:
            return _find_json_rows(path, content[lists[0]], limit)
        if not lists and not any(isinstance(value, dict) for value in values):
            return {name: [value] for name, value in content.items()}
        raise OsrmError(
            f"{path} holds an object of {', '.join(map(str, content))}, expected an array of JSON objects",
            "write the rows of each split to a file of its own",
        )
    raise OsrmError(f"{path} holds {type(content).__name__}, expected an array of JSON objects")


def _name_text_label_pair(path: Path, columns: list[list[Any]]) -> dict[str, list[Any]]:
    """Names for pairs of a text and its label: the label is what recurs more."""
    distinct = [len({json.dumps(value) for value in column}) for column in columns]
    if distinct[0] == distinct[1]:
        raise OsrmError(
            f"{path} holds pairs, of which it cannot be told where the label stands",
            'write objects: {"text": ..., "label": ...}',
        )
    names = ("text", "label") if distinct[0] > distinct[1] else ("label", "text")
    return dict(zip(names, columns, strict=True))


def _read_parquet(path: Path, limit: int | None, _encoding: str | None) -> Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    columns: dict[str, list[Any]] = {}
    with open_task_data_file(path) as file:
        try:
            # Parquet is read from its end: a compressed file has to be unpacked first.
            parquet = ParquetFile(pyarrow.BufferReader(file.read()) if path.suffix == ".gz" else file)
            names = parquet.schema_arrow.names
            if len(set(names)) < len(names):
                raise OsrmError(f"{path}: two columns have one name: {', '.join(names)}")
            columns = {name: [] for name in names}
            rest = parquet.metadata.num_rows if limit is None else limit
            for batch in parquet.iter_batches(batch_size=4096):
                for name, values in zip(columns, batch.columns, strict=True):
                    columns[name] += values[:rest].to_pylist()
                rest -= len(batch)
                if rest <= 0:
                    break
        except (pyarrow.ArrowException, ValueError, OSError, EOFError, zlib.error) as error:  # names may be damaged too
            reason = str(error).partition("\n")[0]  # before pyarrow's stack
            raise OsrmError(f"{path} is damaged or not a parquet file: {reason}") from None
    return Table(str(path), columns)


Reader = Callable[[Path, int | None, str | None], Table]  # of a path, a limit, and an encoding if it is known

FORMATS: dict[str, Reader] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": _read_parquet,
}
# With the part that the hub's parquet files have in their names.
_FILE_NAME = re.compile(rf"(?P<stem>.+?)(-00000-of-00001)?\.({'|'.join(FORMATS)})(\.gz)?")
