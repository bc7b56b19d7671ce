"""The stream that stands for stderr while the program runs."""

from contextlib import suppress
from typing import Any, TextIO


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
