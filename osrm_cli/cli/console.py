"""Output of commands: the result on stdout, everything else on stderr, and the streams that stand for the two."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO

from osrm_cli.errors import OsrmError
from osrm_cli.progress import Advance, Progress, no_progress

if TYPE_CHECKING:
    from rich.table import Table


class Console:
    """One command's output.

    Attributes:
        json: Print the result as one line of JSON instead of text.
        quiet: Print no notes and no progress.
    """

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        if quiet or not sys.stderr.isatty():
            for library in ("HUB", "DATASETS"):  # they read it on import, which comes later
                os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")

    def result(self, record: Mapping[str, Any], text: "str | Table") -> None:
        """Print the command's result: ``record`` under ``--json``, else ``text``.

        Raises:
            OsrmError: If stdout is closed or full.
        """
        if sys.stdout is None:
            raise _cannot_print("stdout is closed")
        if self.json:
            print(json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False))
        elif isinstance(text, str):
            print(text)
        else:
            _make_rich_console(sys.stdout).print(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a note; silent under ``--quiet``."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, also under ``--quiet``."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @property
    def progress(self) -> Progress:
        """Shows how far long work has come; nothing under ``--quiet``."""
        return no_progress if self.quiet else _draw_console_bar


@contextmanager
def _draw_console_bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Draw a bar with rate and time left on stderr; yields the function that advances it."""
    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed or task.completed / (task.elapsed or 1)
            return Text(f"{_format_console_rate(speed)} {unit}/s" if speed else "")

    columns = (
        *(progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()),
        *(Rate(), progress.TimeRemainingColumn()),
    )
    with progress.Progress(*columns, console=_make_rich_console(sys.stderr)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def print_error(message: str, hint: str | None) -> None:
    """Print the user's error on stderr: one line, then perhaps a hint."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {' '.join(hint.split())}", file=sys.stderr)


def table(*columns: str, title: str | None = None) -> "Table":
    """A table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    rich_table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        rich_table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return rich_table


def align_console_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text as lines whose columns begin below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _format_console_rate(speed: float) -> str:
    """Whole numbers; two significant digits below 10."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _make_rich_console(stream: Any) -> Any:
    from rich.console import Console as RichConsole

    # A pipe has no width; a fixed one keeps the output stable for scripts.
    return RichConsole(file=stream, width=None if stream.isatty() else 120, highlight=False)


@dataclass
class ExpendableStream:
    """A stream whose text may be lost: a note that cannot be printed must not end the work.

    Attributes:
        stream: Where it goes, if anywhere.
    """

    stream: TextIO | None

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible."""
        with suppress(OSError):
            if self.stream:
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError):
            if self.stream:
                self.stream.flush()

    def isatty(self) -> bool:
        """Whether somebody may be watching."""
        return self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@dataclass
class ResultStream:
    """A stream whose text counts: what cannot be printed is an error.

    Attributes:
        stream: Where it goes.

    Raises:
        OsrmError: By each method, if the stream is full. A reader that has seen enough is no error of the user.
    """

    stream: TextIO
    isatty: ClassVar = property(attrgetter("stream.isatty"))
    fileno: ClassVar = property(attrgetter("stream.fileno"))
    encoding: ClassVar = property(attrgetter("stream.encoding"))

    def write(self, text: str) -> int:
        """Write ``text``."""
        if text == "":  # typer tries the stream with it, and takes no notice of errors
            return 0
        try:
            return self.stream.write(text)
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        """Write what is kept back."""
        try:
            self.stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        if isinstance(error, BrokenPipeError):
            raise error
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # Python flushes once more when it ends
        raise _cannot_print(error.strerror or str(error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _cannot_print(reason: str) -> OsrmError:
    """The user's error where a command's result has nowhere to go."""
    return OsrmError(f"the result cannot be printed: {reason}", "what the command has written is complete")
