"""User errors: reported in one line, without a traceback."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager


class OsrmError(Exception):
    """Bad input, in one line: what was found and what was expected.

    Anything else that is raised is a bug and keeps its traceback.

    Attributes:
        hint: What to do about it, one line, or ``None``.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def first_line(error: BaseException) -> str:
    """The first line of a library's error that says something, with its type where the message alone says little."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        return lines[1]
    line = next(iter(lines), "")
    if not line or isinstance(error, LookupError | TypeError | AttributeError):
        return f"{type(error).__name__} {line}".strip()
    return line


@contextmanager
def library_errors(problem: str, hint: str | None = None) -> Iterator[None]:
    """Report whatever a library raises on files that it reads as the user's error.

    Args:
        problem: The file and what cannot be done with it.
        hint: What to do about it.

    Raises:
        OsrmError: In place of any other error.
    """
    try:
        yield
    except OsrmError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of libraries in Rust
            raise
        raise OsrmError(f"{problem}: {first_line(error)}", hint) from error


def describe_system_error(error: Exception) -> str | None:
    """The system's trouble with a file: no right to it, no such path possible, no room; ``None`` for other errors."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    # torch.save on a full disk: the stream's own error, or that of the archive that it wanted to close upon it
    if isinstance(error, RuntimeError) and any("iostream error" in str(each) for each in (error, error.__context__)):
        return "a checkpoint cannot be written: is the disk full?"
    return None


def check_number(option: str, value: float, low: float, high: float = math.inf) -> None:
    """Check the value of an option; NaN and infinity are never valid.

    Raises:
        OsrmError: If it is not a finite number from ``low`` to ``high``.
    """
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
        raise OsrmError(f"--{option} is {value:g}, expected {bounds}")
