"""Whole files or none: everything is staged beside its target and renamed when complete.

A staging folder is ``.<name>.<random>.partial``. Its writer holds a lock on the file ``lock`` inside. The system
releases it with the process, so that the next writer of the same target can tell what was abandoned, and removes it.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

_LOCK = "lock"  # held by the process that writes into the staging folder
_OLD = "replaced"  # where a folder's old contents wait for the new ones
_BEGINNING = 60.0  # seconds that a writer may take between making its staging folder and locking it


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
        stage = folder / "new" / path.name
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
        stage, old = folder / "new" / path.name, folder / _OLD / path.name
        stage.mkdir()
        old.parent.mkdir()
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


def check_disk_space(path: Path, needed: int) -> None:
    """Stop before any work is done if a disk has no room for an output.

    Args:
        path: The output.
        needed: Its bytes.

    Raises:
        OsrmError: If fewer are free.
    """
    place = next(folder for folder in path.resolve().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OsrmError(
            f"cannot write {path}: it takes {needed / 2**30:.1f} GiB, its disk has {free / 2**30:.1f} GiB left",
            "choose another output, or free some space",
        )


def copy_files_to_stage(source: Path, stage: Path, is_wanted: Callable[[Path], bool]) -> None:
    """Copy a folder's files and those of its folders into one that is being staged; hidden ones are left out.

    Args:
        source: The folder.
        stage: An existing folder.
        is_wanted: Whether to copy a file, by its path below the folder.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and is_wanted(name):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stage / name)


@contextmanager
def _staging_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    refuse_existing(path, overwrite)
    folder: Path | None = None
    lock: int | None = None
    made = [parent for parent in path.parents if not os.path.lexists(parent)]
    try:
        _remove_abandoned_stages(path)
        refuse_existing(path, overwrite)  # an abandoned folder may have held the old output
        folder, lock = _make_locked_folder(path)
        (folder / "new").mkdir()
        yield folder
    except Exception as error:
        reason = _explain_write_error(error, path, folder)
        if reason is None:
            raise
        raise OsrmError(f"cannot write {path}: {reason}", "nothing was changed") from error
    finally:
        if folder is not None:
            try:
                _remove_stage(folder)
            except BaseException:  # Ctrl-C meanwhile
                _remove_stage(folder)
                raise
        if lock is not None:
            os.close(lock)
        for parent in made if not os.path.lexists(path) else ():
            with suppress(OSError):  # another writer's output may lie in it
                parent.rmdir()


def _make_locked_folder(path: Path) -> tuple[Path, int]:
    """A new staging folder, and the open file whose lock says that its writer lives."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        except FileNotFoundError:  # another writer, which had made the folder around it, has failed
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError:
            folder.rmdir()
            raise
        if _try_file_lock(lock) is not False and (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)  # another writer took it for abandoned, before it was locked


def _remove_abandoned_stages(path: Path) -> None:
    """Remove staging folders of ``path`` whose writers were killed; put back an old output that one has moved away."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.partial")
    try:
        folders = [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    except OSError:  # one may write into a folder that one may not list
        return
    for folder in folders:
        lock = None
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR)
        try:
            # Without the file its writer was killed as it began, or is just beginning.
            if _try_file_lock(lock) if lock is not None else _age_of_folder(folder) > _BEGINNING:
                old = folder / _OLD / path.name
                if os.path.lexists(old) and not os.path.lexists(path):
                    old.rename(path)
                _remove_stage(folder)
        finally:
            if lock is not None:
                os.close(lock)


def _remove_stage(folder: Path) -> None:
    """Remove a staging folder, also if an old output in it has folders that may not be written: their owner may."""
    shutil.rmtree(folder, ignore_errors=True)
    for root, names, _ in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if not path.is_symlink():
                with suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _try_file_lock(file: int) -> bool | None:
    """Lock an open file for this process; false where another holds it, ``None`` where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _age_of_folder(path: Path) -> float:
    """Seconds since a folder was changed; none if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


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
    path.chmod(0o666 & ~_read_umask())
    sync_file(path)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
