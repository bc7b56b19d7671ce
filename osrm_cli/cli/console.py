"""Output of commands: the result on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from osrm_cli.cli.streams import cannot_print
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
            raise cannot_print("stdout is closed")
        if self.json:
            print(json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False))
        elif isinstance(text, str):
            print(text)
        else:
            _rich(sys.stdout).print(text)
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
        return no_progress if self.quiet else _draw_bar


@contextmanager
def _draw_bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Draw a bar with rate and time left on stderr; yields the function that advances it."""
    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed or task.completed / (task.elapsed or 1)
            return Text(f"{_rate(speed)} {unit}/s" if speed else "")

    columns = (
        *(progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()),
        *(Rate(), progress.TimeRemainingColumn()),
    )
    with progress.Progress(*columns, console=_rich(sys.stderr)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def fail(message: str, hint: str | None) -> None:
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


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text as lines whose columns begin below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _rate(speed: float) -> str:
    """Whole numbers; two significant digits below 10."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _rich(stream: Any) -> Any:
    from rich.console import Console as RichConsole

    # A pipe has no width; a fixed one keeps the output stable for scripts.
    return RichConsole(file=stream, width=None if stream.isatty() else 120, highlight=False)
