"""The one exception that is the user's to mend."""


class OsrmError(Exception):
    """Bad input, told in one line: what was found and what was expected.

    Anything else that is raised is a bug and keeps its traceback.

    Attributes:
        hint: What to do about it, one line, or ``None``.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
