"""Whole files or none: everything is staged beside its target and renamed when complete."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osrm_cli.errors import OsrmError

# Out of space: any write that fails with one of these was a write of the output.
_OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
}
# Errors that reading an input can raise too: they concern the output only if they name one of its paths.
_PATH_ERRORS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, expected a file",
    errno.ENAMETOOLONG: "the name is too long",
}


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Stop before any work is done if ``path`` exists.

    Raises:
        OsrmError: If ``path`` exists and ``overwrite`` is false, or if it is or contains the current folder.
    """
    if os.path.lexists(path) and not overwrite:
        raise OsrmError(f"{path} exists already", "pass --overwrite to replace it, or choose another output")
    if Path.cwd().is_relative_to(path.resolve()):
        raise OsrmError(f"{path} is or contains the current folder", "choose another output")


@contextmanager
def write_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging path beside ``path``; on success it becomes ``path``, on any failure it is removed."""
    with _staging_folder(path, overwrite) as folder:
        stage = folder / path.name
        yield stage
        _set_mode_and_sync(stage)
        refuse_existing(path, overwrite)  # another process may have written it meanwhile
        stage.replace(path)


@contextmanager
def write_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty staging folder beside ``path``; on success it becomes ``path``, on any failure it is removed.

    A folder cannot be replaced in one step, so an old one is moved into the staging area first and is moved back if the
    second rename fails.
    """
    with _staging_folder(path, overwrite) as folder:
        stage, old = folder / path.name, folder / "replaced"
        stage.mkdir()
        yield stage
        for member in sorted(stage.rglob("*")):
            if member.is_file():
                _set_mode_and_sync(member)
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
def _staging_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    refuse_existing(path, overwrite)
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        yield folder
    except Exception as error:
        reason = _explain_write_error(error, path, folder)
        if reason is None:
            raise
        raise OsrmError(f"cannot write {path}: {reason}", "nothing was changed") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _explain_write_error(error: Exception, path: Path, folder: Path | None) -> str | None:
    """The reason that the output could not be written; ``None`` if the error has another cause."""
    if not isinstance(error, OSError):
        # safetensors and torch wrap the system's errors in their own; the number is only in the text.
        return next((reason for code, reason in _OUT_OF_SPACE.items() if f"os error {code})" in str(error)), None)
    if error.errno in _OUT_OF_SPACE:
        return _OUT_OF_SPACE[error.errno]
    error_paths = [
        Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    ]
    is_output = folder is None or path in error_paths or any(folder in (name, *name.parents) for name in error_paths)
    return _PATH_ERRORS.get(error.errno or 0) if is_output else None


def _set_mode_and_sync(path: Path) -> None:
    """Set a file's mode according to the user's umask (safetensors leaves 0600), and flush it to the disk."""
    path.chmod(0o666 & ~_umask())
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
