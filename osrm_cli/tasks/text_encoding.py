"""Text of a file in the encoding that it has: UTF-8, UTF-16 by its mark, else the one of Western Windows."""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import TextIO, TypeVar

from osrm_cli.errors import OsrmError

T = TypeVar("T")

_WINDOWS = "cp1252"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_binary(path: Path) -> BufferedReader | gzip.GzipFile:
    """Open a file, plain or ``.gz``."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def read_text(path: Path, read: Callable[[TextIO], T]) -> tuple[T, list[str]]:
    """Call ``read`` with the file's text; line ends are left as they are.

    Args:
        path: The file.
        read: Called a second time if the file turns out not to be UTF-8.

    Returns:
        What ``read`` returned, and warnings for the user.

    Raises:
        OsrmError: If the encoding cannot be told, or a gzip file is damaged.
    """
    try:
        with open_binary(path) as file:
            encoding = "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"
        try:
            return _read_as(path, encoding, read), []
        except UnicodeDecodeError as error:
            _check_windows(path, error)
        warning = f"{path} is not UTF-8: read as {_WINDOWS} (Western Windows); if that is wrong, save it as UTF-8"
        return _read_as(path, _WINDOWS, read), [warning]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OsrmError(f"{path}: damaged gzip file: {error}") from None


def _read_as(path: Path, encoding: str, read: Callable[[TextIO], T]) -> T:
    with open_binary(path) as file, io.TextIOWrapper(file, encoding, newline="") as text:
        return read(text)


def _check_windows(path: Path, error: UnicodeDecodeError) -> None:
    """Check that text which is not UTF-8 can be Windows' own.

    Raises:
        OsrmError: If it holds characters of UTF-8 all the same, so that it is damaged, or bytes that Windows lacks.
    """
    hint = "save the file as UTF-8"
    if error.encoding.startswith("utf-16"):
        raise OsrmError(f"{path}: damaged UTF-16: {error.reason}", hint) from None
    with open_binary(path) as file:
        lines = file.read().splitlines()
    number, reason = next((number, reason) for number, line in enumerate(lines, 1) if (reason := _find_flaw(line)))
    content = b"\n".join(lines)
    if b"\0" in content or not content.decode(errors="ignore").isascii() or _find_flaw(content, _WINDOWS):
        raise OsrmError(f"{path}:{number}: not UTF-8: {reason}", hint) from None


def _find_flaw(content: bytes, encoding: str = "utf-8") -> str | None:
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        return error.reason
    return None
