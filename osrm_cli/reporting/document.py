"""A report's contents, for whichever form it is written in."""

from collections.abc import Sequence
from dataclasses import dataclass

from osrm_cli.plotting.figure import Picture


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
class Table:
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


Block = Heading | Paragraph | Items | Table | Picture
