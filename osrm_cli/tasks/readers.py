"""Files to rows: jsonl, json, csv, tsv and parquet, each plain or ``.gz``.

Text formats are read with the standard library and parquet with pyarrow, which ``datasets`` brings along anyway.
``datasets`` itself would copy the file into its cache before the first row, and its errors name no line.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from osrm_cli.errors import OsrmError

SPLIT_STEMS = {
    "train": ("train",),
    "dev": ("dev", "validation"),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test",),
    "test_matched": ("test_matched",),
    "test_mismatched": ("test_mismatched",),
}


class SourceRow(NamedTuple):
    """One row of a file.

    Attributes:
        line: Line on which the row starts, counted from 1; in a parquet file, the row's number.
        values: Values by column.
    """

    line: int
    values: dict[str, Any]


def find_split_file(folder: Path, split: str) -> Path | None:
    """The file that holds a split, or ``None``.

    Raises:
        OsrmError: If two files could be meant.
    """
    names = [
        f"{stem}.{kind}{gz}" for stem in SPLIT_STEMS.get(split, (split,)) for kind in FORMATS for gz in ("", ".gz")
    ]
    found = [path for name in names if (path := folder / name).is_file()]
    if len(found) > 1:
        raise OsrmError(f"{found[0]} and {found[1]} hold the same split, expected one file", "remove one of them")
    return found[0] if found else None


def read_rows(path: Path, limit: int | None = None) -> list[SourceRow]:
    """The rows of a file, or its first ``limit`` rows without reading on.

    Raises:
        OsrmError: If the file or a row cannot be read, or if there is no row.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        rows = list(islice(FORMATS[kind](path), limit))
    except OSError as error:
        raise OsrmError(f"{path} cannot be read: {error.strerror or error}") from None
    if not rows:
        raise OsrmError(f"{path} holds no rows", "write one example a row")
    return rows


def _jsonl(path: Path) -> Iterator[SourceRow]:
    yield from _json_rows(path, _lines(path))


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[SourceRow]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OsrmError(f"{path}:{number}: bad JSON: {error}", "write one JSON object a line") from None
        yield SourceRow(number, _object(values, path, number))


def _json(path: Path) -> Iterator[SourceRow]:
    """One array of objects; a file that does not start with ``[`` is taken for JSON lines."""
    lines = list(_lines(path))
    text = "".join(lines)
    if not text.lstrip().startswith("["):
        yield from _json_rows(path, lines)
        return
    line, counted = 1, 0
    try:
        for start, values in _elements(text):
            line, counted = line + text.count("\n", counted, start), start
            yield SourceRow(line, _object(values, path, line))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", line)
        raise OsrmError(f"{path}:{line}: bad JSON: {error}", "write one array of JSON objects") from None


def _elements(text: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each with the offset at which it starts."""
    decoder, blank = json.JSONDecoder(), re.compile(r"\s*")

    def after_blank(offset: int) -> int:
        return blank.match(text, offset).end()  # type: ignore[union-attr]  # the pattern matches everywhere

    offset = after_blank(text.index("[") + 1)
    more = not text.startswith("]", offset)
    while more:
        value, end = decoder.raw_decode(text, offset)
        yield offset, value
        offset = after_blank(end)
        more = text.startswith(",", offset)
        if more:
            offset = after_blank(offset + 1)
    if not text.startswith("]", offset):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, offset)
    if (end := after_blank(offset + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _object(values: Any, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise OsrmError(f"{path}:{line}: found {type(values).__name__}, expected a JSON object")
    return values


def _csv(path: Path) -> Iterator[SourceRow]:
    yield from _table(path, csv.reader(_lines(path), strict=True))


def _tsv(path: Path) -> Iterator[SourceRow]:
    """Nothing is quoted, as in GLUE's own files: their sentences hold single quotation marks."""
    yield from _table(path, csv.reader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE))


def _table(path: Path, records: Any) -> Iterator[SourceRow]:
    header: list[str] = []
    line = 1
    while True:
        try:
            record = next(records, None)
        except csv.Error as error:
            raise OsrmError(f"{path}:{line}: bad row: {error}") from None
        if record is None:
            return
        if not header and record:
            header = record
            if len(set(header)) < len(header):
                raise OsrmError(f"{path}:{line}: two columns have one name: {', '.join(header)}")
        elif record:
            if len(record) != len(header):
                raise OsrmError(
                    f"{path}:{line}: {len(record)} columns, expected {len(header)}: {', '.join(header)}",
                    'in a csv file, put texts that hold a comma in "quotation marks"' if ".csv" in path.name else None,
                )
            yield SourceRow(line, dict(zip(header, record, strict=True)))
        line = records.line_num + 1


def _parquet(path: Path) -> Iterator[SourceRow]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with _opened(path) as file:
        try:
            # Parquet is read from its end: a compressed file has to be unpacked first.
            source = pyarrow.BufferReader(file.read()) if path.suffix == ".gz" else file
            number = 0
            for batch in ParquetFile(source).iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(number, values)
        except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
            raise OsrmError(f"{path} is damaged or no parquet file: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """What pyarrow says before its stack."""
    return str(error).partition("\n")[0]


def _lines(path: Path) -> Iterator[str]:
    """Decode line by line, so that an error knows its line."""
    number = 0
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                text = line.decode()
                yield text.removeprefix("\ufeff") if number == 1 else text
        except UnicodeDecodeError as error:
            raise OsrmError(f"{path}:{number}: not UTF-8: {error.reason}", "save the file as UTF-8") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise OsrmError(f"{path}:{number + 1}: damaged gzip file: {error}") from None


def _opened(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


FORMATS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _tsv,
    "parquet": _parquet,
}
