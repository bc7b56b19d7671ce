"""A report's contents, and the same as Markdown, its pictures as files beside it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from osrm_cli.plotting.figure import Plot


class Strong(str):
    """Text of a cell that stands out: the best of its column."""

    __slots__ = ()


@dataclass(frozen=True)
class Heading:
    """A section's title; level 1 is the report's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of short texts."""

    texts: Sequence[str]


@dataclass(frozen=True)
class TableBlock:
    """A table whose first column is text.

    Attributes:
        title: What it shows; read out where the table is not seen.
        columns: Titles of the columns.
        rows: Cells.
        texts: How many of the first columns are text; the others are numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


Block = Heading | Paragraph | Items | TableBlock | Plot


def render_markdown(blocks: Iterable[Block]) -> str:
    """The whole text."""
    return "\n\n".join(map(_block_markdown, blocks)) + "\n"


def _block_markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape_markdown(text)}"
        case Paragraph(text):
            return _escape_markdown(text)
        case Items(texts):
            return "\n".join(f"- {_escape_markdown(text)}" for text in texts)
        case TableBlock():
            return _table_markdown(block)
        case Plot():
            title = _escape_markdown(block.title)
            return f"![{title}]({block.name}.png)\n\n*{title}.* {_escape_markdown(block.caption)}"


def _table_markdown(table: TableBlock) -> str:
    marks = ["---" if place < table.texts else "---:" for place in range(len(table.columns))]
    return "\n".join([_table_line(table.columns), f"| {' | '.join(marks)} |", *map(_table_line, table.rows)])


def _table_line(cells: Sequence[str]) -> str:
    texts = [f"**{_escape_markdown(cell)}**" if isinstance(cell, Strong) else _escape_markdown(cell) for cell in cells]
    return f"| {' | '.join(texts)} |"


def _escape_markdown(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", text)
