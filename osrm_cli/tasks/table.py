"""Rows of one file, held by column."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from osrm_cli.errors import OsrmError


@dataclass
class Table:
    """Rows of one file, held by column: a million rows take a third of what a dict each would.

    Attributes:
        source: The file, or its name on the hub or among the generated tasks.
        columns: Values by column, all of one length; ``None`` where a row has none.
        numbers: Line on which each row starts, counted from 1; the number of the row where a file has no lines.
        by_line: Whether the numbers are lines.
        warnings: What the user should know about how the file was read.
    """

    source: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int] = ()
    by_line: bool = True
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Count the rows where no line is known."""
        if not self.numbers:
            self.numbers, self.by_line = range(1, len(self) + 1), False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def locate(self, row: int) -> str:
        """Where a row stands, for messages: ``train.csv:7``, or ``train.parquet, row 7``."""
        return f"{self.source}:{self.numbers[row]}" if self.by_line else f"{self.source}, row {self.numbers[row]}"

    def find_column(self, name: str) -> str | None:
        """The column of that name; case and blanks around it count only where two columns differ by nothing else."""
        if name in self.columns:
            return name
        similar = [column for column in self.columns if column.strip().casefold() == name.strip().casefold()]
        return similar[0] if len(similar) == 1 else None

    def get_column(self, name: str) -> str:
        """The column of that name as the table spells it.

        Raises:
            OsrmError: If there is none.
        """
        found = self.find_column(name)
        if found is None:
            raise OsrmError(
                f"{self.source} has no column '{name}', found: {', '.join(self.columns)}",
                "columns and label_column can be set in the task's task.toml",
            )
        return found

    def take(self, rows: Sequence[int]) -> "Table":
        """Some of the rows, in the order given."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return Table(self.source, columns, array("q", (self.numbers[row] for row in rows)), self.by_line, self.warnings)
