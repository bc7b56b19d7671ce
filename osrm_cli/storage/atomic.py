"""Whole files or none: everything is staged beside its target and renamed when complete."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osrm_cli.errors import OsrmError

# No room: whatever write met it, the output was to take the room.
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
}
# Reasons that an input can have too: they count as the output's only where the error names one of its paths.
_NO_PLACE = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, expected a file",
    errno.ENAMETOOLONG: "the name is too long",
}


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Stop before any work is done when ``path`` is taken.

    Raises:
        OsrmError: If ``path`` exists and ``overwrite`` is false, or if it is the current folder or holds it.
    """
    if os.path.lexists(path) and not overwrite:
        raise OsrmError(f"{path} exists already", "pass --overwrite to replace it, or choose another output")
    if Path.cwd().is_relative_to(path.resolve()):
        raise OsrmError(f"{path} is the current folder or holds it", "choose another output")


@contextmanager
def write_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging path beside ``path``; on success it becomes ``path``, on any failure it is removed."""
    with _staged(path, overwrite) as folder:
        stage = folder / path.name
        yield stage
        _settle(stage)
        refuse_existing(path, overwrite)  # somebody else may have been faster
        stage.replace(path)


@contextmanager
def write_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty staging folder beside ``path``; on success it becomes ``path``, on any failure it is removed.

    A folder cannot be replaced in one step, so an old one is moved into the staging area first and is put back if the
    second rename does not come about.
    """
    with _staged(path, overwrite) as folder:
        stage, old = folder / path.name, folder / "replaced"
        stage.mkdir()
        yield stage
        for member in sorted(stage.rglob("*")):
            if member.is_file():
                _settle(member)
        refuse_existing(path, overwrite)
        try:
            if os.path.lexists(path):
                path.rename(old)
            stage.rename(path)
        except BaseException:  # also Ctrl-C between the two
            if os.path.lexists(old) and not os.path.lexists(path):
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
    except Exception as error:
        reason = _reason(error, path, folder)
        if reason is None:
            raise
        raise OsrmError(f"cannot write {path}: {reason}", "nothing was changed") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception, path: Path, folder: Path | None) -> str | None:
    """Why the output could not be written, if that is what ``error`` says."""
    if not isinstance(error, OSError):
        # safetensors and torch wrap the system's errors in their own; the number is in the text alone.
        return next((why for code, why in _NO_ROOM.items() if f"os error {code})" in str(error)), None)
    if error.errno in _NO_ROOM:
        return _NO_ROOM[error.errno]
    named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    ours = folder is None or path in named or any(folder in (name, *name.parents) for name in named)
    return _NO_PLACE.get(error.errno or 0) if ours else None


def _settle(path: Path) -> None:
    """Give a file the mode that the user's umask asks for (safetensors leaves 0600), and see it on the disk."""
    path.chmod(0o666 & ~_umask())
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
