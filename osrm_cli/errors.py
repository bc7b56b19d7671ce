"""User errors: reported in one line, without a traceback."""

import math


class OsrmError(Exception):
    """Bad input, in one line: what was found and what was expected.

    Anything else that is raised is a bug and keeps its traceback.

    Attributes:
        hint: What to do about it, one line, or ``None``.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def first_line(error: Exception) -> str:
    """The first line of a library's error, or its type if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check_number(option: str, value: float, low: float, high: float = math.inf) -> None:
    """Check the value of an option; NaN and infinity are never valid.

    Raises:
        OsrmError: If it is not a finite number from ``low`` to ``high``.
    """
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
        raise OsrmError(f"--{option} is {value:g}, expected {bounds}")
