"""Text of a file in the encoding that it has: UTF-8, UTF-16 by its mark, else the one of Western Windows."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from osrm_cli.errors import OsrmError

WINDOWS = "cp1252"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_task_data_file(path: Path) -> BufferedReader | gzip.GzipFile:
    """Open a file, plain or ``.gz``."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def open_task_data_text(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """Open a file's text; line ends are left as they are.

    Args:
        path: The file.
        encoding: Its encoding; by default UTF-16 where its mark says so, else UTF-8.

    Raises:
        OsrmError: If a gzip file is damaged.
    """
    with _explaining_damaged_gzip(path):
        with open_task_data_file(path) as file:
            encoding = encoding or ("utf-16" if file.read(2) in _UTF_16 else "utf-8-sig")
        with open_task_data_file(path) as file, io.TextIOWrapper(file, encoding, newline="") as text:
            yield text


def check_windows_encoding(path: Path, error: UnicodeDecodeError) -> str:
    """Check that text which is not UTF-8 can be Windows' own; returns a warning for the user.

    Raises:
        OsrmError: If it holds characters of UTF-8 all the same, so that it is damaged, or bytes that Windows lacks.
    """
    hint = "save the file as UTF-8"
    if error.encoding.startswith("utf-16"):
        raise OsrmError(f"{path}: damaged UTF-16: {error.reason}", hint) from None
    with _explaining_damaged_gzip(path), open_task_data_file(path) as file:
        lines = file.read().splitlines()
    number, reason = next(
        (number, reason) for number, line in enumerate(lines, 1) if (reason := _find_encoding_flaw(line))
    )
    content = b"\n".join(lines)
    if b"\0" in content or not content.decode(errors="ignore").isascii() or _find_encoding_flaw(content, WINDOWS):
        raise OsrmError(f"{path}:{number}: not UTF-8: {reason}", hint) from None
    return f"{path} is not UTF-8: read as {WINDOWS} (Western Windows); if that is wrong, save it as UTF-8"


def is_encodable(text: str) -> bool:
    """Whether a text is whole: JSON may hold half a surrogate pair, which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _explaining_damaged_gzip(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OsrmError(f"{path}: damaged gzip file: {error}") from None


def _find_encoding_flaw(content: bytes, encoding: str = "utf-8") -> str | None:
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        return error.reason
    return None
