"""The streams that stand for stdout and stderr while the program runs."""

import os
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from osrm_cli.errors import OsrmError


class ExpendableStream:
    """A stream whose text may be lost: a note that cannot be printed must not end the work.

    Args:
        stream: Where it goes, if anywhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible."""
        with suppress(OSError):
            if self._stream:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError):
            if self._stream:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether somebody may be watching."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ResultStream:
    """A stream whose text counts: what cannot be printed is an error.

    Args:
        stream: Where it goes.

    Raises:
        OsrmError: By each method, if the stream is full. A reader that has seen enough is no error of the user.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.isatty, self.fileno, self.encoding = stream.isatty, stream.fileno, stream.encoding

    def write(self, text: str) -> int:
        """Write ``text``."""
        if text == "":  # typer tries the stream with it, and takes no notice of errors
            return 0
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        """Write what is kept back."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        if isinstance(error, BrokenPipeError):
            raise error
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # Python flushes once more when it ends
        raise cannot_print(error.strerror or str(error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def cannot_print(reason: str) -> OsrmError:
    """The user's error where a command's result has nowhere to go."""
    return OsrmError(f"the result cannot be printed: {reason}", "what the command has written is complete")
