"""Whole files or none: everything is staged beside its target and renamed when complete."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osrm_cli.errors import OsrmError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Stop before any work is done when ``path`` is taken.

    Raises:
        OsrmError: If ``path`` exists and ``overwrite`` is false.
    """
    if os.path.lexists(path) and not overwrite:
        raise OsrmError(f"{path} exists already", "pass --overwrite to replace it, or choose another output")


@contextmanager
def write_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging path beside ``path``; on success it becomes ``path``, on any failure it is removed."""
    with _staged(path, overwrite) as folder:
        stage = folder / path.name
        yield stage
        stage.chmod(0o666 & ~_umask())  # safetensors leaves 0600
        _sync(stage)
        os.replace(stage, path)


@contextmanager
def write_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty staging folder beside ``path``; on success it becomes ``path``, on any failure it is removed.

    A folder cannot be replaced in one step, so an old one is moved into the staging area first and is put back if the
    second rename fails.
    """
    with _staged(path, overwrite) as folder:
        stage, old = folder / path.name, folder / "replaced"
        stage.mkdir()
        yield stage
        for member in sorted(stage.rglob("*")):
            if member.is_file():
                member.chmod(0o666 & ~_umask())
                _sync(member)
        if os.path.lexists(path):
            path.rename(old)
        try:
            stage.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


@contextmanager
def _staged(path: Path, overwrite: bool) -> Iterator[Path]:
    refuse_existing(path, overwrite)
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        yield folder
    except OSError as error:
        raise _explained(path, error) from error
    except Exception as error:
        # safetensors and torch wrap the system's errors in their own; the number is in the text alone.
        if f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error):
            raise _explained(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _explained(path: Path, error: OSError) -> Exception:
    """The user's errors in one line; any other ``OSError`` as it came."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EEXIST: "a part of the path is a file, not a folder",
        errno.EFBIG: "the file would be larger than allowed",
    }
    if error.errno in reasons:
        return OsrmError(f"cannot write {path}: {reasons[error.errno]}", "nothing was changed")
    return error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
