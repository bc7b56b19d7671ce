"""Files of separated values, as spreadsheets, pandas and GLUE write them.

Read with the standard library's ``csv`` in its strict mode: on a quotation mark that is escaped by a backslash, or on a
comma too many, pandas and pyarrow return wrong texts without an error, and neither names the line of a later one.
"""

import csv
from array import array
from pathlib import Path
from typing import Any, TextIO

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.file_encoding import open_task_data_text
from osrm_cli.tasks.table import Table

DELIMITERS = (",", ";", "\t", "|")

_SAMPLE = 1 << 18  # characters that are looked at to tell how a file is quoted


def read_csv(path: Path, limit: int | None, encoding: str | None) -> Table:
    """Read a ``.csv`` file; what separates its values is told from its header, a comma where that has nothing."""
    return _read_delimited(path, ",", limit, encoding)


def read_tsv(path: Path, limit: int | None, encoding: str | None) -> Table:
    """Read a ``.tsv`` file; quotation marks are text, as in GLUE's own files, unless the file doubles them."""
    return _read_delimited(path, "\t", limit, encoding)


def _read_delimited(path: Path, default: str, limit: int | None, encoding: str | None) -> Table:
    csv.field_size_limit(2**31 - 1)
    with open_task_data_text(path, encoding) as file:
        dialect = _find_csv_dialect(_read_delimited_sample(file), default)
        try:
            return _parse_delimited_rows(path, file, dialect, limit)
        except OsrmError:
            if dialect["quoting"] == csv.QUOTE_NONE or '\\"' not in _rewind_delimited_file(file).read():
                raise
            try:
                return _parse_delimited_rows(path, _rewind_delimited_file(file), {**dialect, "escapechar": "\\"}, limit)
            except OsrmError:
                pass
            raise


def _rewind_delimited_file(file: TextIO) -> TextIO:
    file.seek(0)
    return file


def _read_delimited_sample(file: TextIO) -> str:
    sample = file.read(_SAMPLE)
    file.seek(0)
    return sample if len(sample) < _SAMPLE else sample[: sample.rfind("\n") + 1] or sample


def _find_csv_dialect(sample: str, default: str) -> dict[str, Any]:
    """How a file is written, in the words of ``csv``."""
    header = next((line for line in sample.splitlines() if line.strip()), "")
    # The first of the largest: the default wins where nothing tells.
    candidates = (default, *(each for each in DELIMITERS if each != default))
    delimiter = max(candidates, key=lambda each: len(next(csv.reader([header], delimiter=each), ())))
    quoting = csv.QUOTE_NONE if delimiter == "\t" and not _is_quoted_tsv(sample) else csv.QUOTE_MINIMAL
    return {"delimiter": delimiter, "quoting": quoting, "strict": quoting != csv.QUOTE_NONE}


def _is_quoted_tsv(sample: str) -> bool:
    """Whether quotation marks enclose fields: some enclose others, doubled, or a tab, or all fields of the header."""
    lines = sample.splitlines(keepends=True)
    try:
        quoted = list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error:
        return False
    plain = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if len({len(record) for record in quoted if record}) > 1:
        return False
    if quoted and plain and plain[0] != quoted[0] and plain[0] == [f'"{name}"' for name in quoted[0]]:
        return True
    written = {cell for record in plain for cell in record if cell.startswith('""') or '""' in cell}
    ragged = len({len(record) for record in plain if record}) > 1
    return ragged or any(
        '"' in cell and '"' + cell.replace('"', '""') + '"' in written for record in quoted for cell in record
    )


def _parse_delimited_rows(path: Path, file: TextIO, dialect: dict[str, Any], limit: int | None) -> Table:
    """The rows of a file, or its first ``limit``.

    Raises:
        OsrmError: If a row has not as many values as the header has names, or a quotation mark is not closed.
    """
    records = csv.reader(file, **dialect)
    header, _ = _next_delimited_row(path, records)
    if header is None:
        return Table(str(path), {})
    named = [index for index, name in enumerate(header) if name.strip()]
    names = [header[index] for index in named]
    if len(set(names)) < len(names):
        raise OsrmError(f"{path}:{records.line_num}: two columns have one name: {', '.join(names)}")
    if not named:
        raise OsrmError(f"{path}:{records.line_num}: no column has a name", "write the columns' names into line 1")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    targets = [(columns[header[index]], index) for index in named]
    lines = array("q")
    width, least, spilled = len(header), named[-1] + 1, 0
    while limit is None or len(lines) < limit:
        record, line = _next_delimited_row(path, records)
        if record is None:
            break
        if len(record) != width and (len(record) < least or any(cell.strip() for cell in record[width:])):
            raise OsrmError(
                f"{path}:{line}: {len(record)} columns, expected {width}: {', '.join(names)}",
                _explain_delimited_width(len(record) > width, dialect),
            )
        for column, index in targets:
            column.append(record[index])
        spilled += least < width and any(cell.strip() for cell in record[least:])
        lines.append(line)
    left_out = f"{path}: left out columns without a name, in which {spilled} rows hold something"
    return Table(str(path), columns, lines, warnings=[left_out] if spilled else [])


def _next_delimited_row(path: Path, records: Any) -> tuple[list[str] | None, int]:
    """The next row that is not blank, and the line on which it starts."""
    while True:
        line = records.line_num + 1
        try:
            record: list[str] | None = next(records, None)
        except csv.Error as error:
            raise OsrmError(f"{path}:{line}: bad row: {error}") from None
        if record is None or record:
            return record, line


def _explain_delimited_width(long: bool, dialect: dict[str, Any]) -> str:
    name = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}[dialect["delimiter"]]
    held = name if long else "a line break"
    if dialect["quoting"] == csv.QUOTE_NONE:
        return f'a text of a tsv file cannot hold {held}: write jsonl, or csv with the text in "quotation marks"'
    return f'put texts that hold {held} in "quotation marks"'
