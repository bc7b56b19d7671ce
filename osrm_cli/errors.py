"""User errors: reported in one line, without a traceback."""


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
