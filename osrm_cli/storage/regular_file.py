"""Small files from anywhere: regular files only, since a pipe or a device could go on for ever."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError


def check_regular(path: Path) -> None:
    """Check that a path is a regular file, or a link to one.

    Raises:
        OsrmError: If it is missing, a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise OsrmError(f"{path} is missing") from None
    except OSError as error:  # a link that leads to itself, or no right to look
        raise OsrmError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise OsrmError(f"{path} is {_kind(mode)}, expected a file")


def check_folder(folder: Path, recursive: bool = False) -> None:
    """Check that a folder holds regular files and folders alone; hidden ones are not looked at.

    Args:
        folder: The folder.
        recursive: Look into its folders too, and refuse links to folders, which may lead back.

    Raises:
        OsrmError: Naming the first pipe, socket or device, or link to a folder.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                check_regular(Path(entry.path))
            elif recursive:
                if entry.is_symlink():
                    raise OsrmError(f"{entry.path} is a link to a folder, expected a folder", "copy the folder there")
                check_folder(Path(entry.path), recursive)


def read_bytes(path: Path) -> bytes:
    """The contents of a regular file.

    Raises:
        OsrmError: If it cannot be read.
    """
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise OsrmError(f"{path} cannot be read: {error.strerror}") from None


def finite_number(text: str) -> float:
    """A number of JSON for ``json.loads``; NaN and infinity are none, though Python writes them.

    Raises:
        ValueError: If it is not finite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def read_json(path: Path, remedy: str, finite: bool = False) -> Any:
    """The JSON value in a regular file.

    Args:
        path: The file.
        remedy: What to do about a damaged one.
        finite: Refuse NaN and infinity, which other programs may write.

    Raises:
        OsrmError: If it cannot be read or is not JSON.
    """
    content = read_bytes(path)
    try:
        if finite:
            return json.loads(content, parse_constant=finite_number, parse_float=finite_number)
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", remedy) from None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")
