"""A task's examples in two parts: one chooses among merges, the other reports what the choice is worth."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osrm_cli.errors import OsrmError
from osrm_cli.tasks import loading
from osrm_cli.tasks.task import Data, Example, Label, Task

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Parts:
    """Two parts of a task's examples.

    Attributes:
        task: The task.
        examples: All of them, each once.
        labels: Their labels.
        rows: Indices of the examples by part.
        sha256: Digest of the examples by split.
    """

    task: Task
    examples: tuple[Example, ...]
    labels: Sequence[Label]
    rows: Mapping[str, tuple[int, ...]]
    sha256: Mapping[str, str]

    def labels_of(self, part: str) -> list[Label]:
        """One part's labels."""
        return [self.labels[row] for row in self.rows[part]]


def load(name: str, source: str, split: str, validation_split: str | None, limit: int | None, seed: int) -> Parts:
    """Read a task's examples; without a split for validation, a random half of ``split`` serves as one.

    Args:
        name: The task.
        source: Data as ``--data`` names them.
        split: What reports.
        validation_split: What chooses.
        limit: Read no more than the first so many examples of a split.
        seed: Decides which half an example belongs to.

    Raises:
        OsrmError: If there is no such split, it has no labels, or too few examples.
    """
    test = loading.load(name, source, split, limit)
    if validation_split is None:
        return _halves(test, seed)
    validation = loading.load(name, source, validation_split, limit)
    first = len(validation.examples)
    return Parts(
        test.task,
        validation.examples + test.examples,
        validation.labels + test.labels,
        {VALIDATION: tuple(range(first)), TEST: tuple(range(first, first + len(test.examples)))},
        {validation_split: validation.sha256, split: test.sha256},
    )


def _halves(data: Data, seed: int) -> Parts:
    """An example's half comes from a hash of seed, task and index: every sweep of a task has the same halves."""
    count = len(data.examples)
    if count < 2:
        raise OsrmError(
            f"{data.source} has {count} example, two halves need two or more", "use --validation-split, or more data"
        )
    prefix = f"halves\0{seed}\0{data.task.name}\0{data.split}\0"
    order = sorted(range(count), key=lambda index: hashlib.sha256(f"{prefix}{index}".encode()).digest())
    rows = {VALIDATION: tuple(sorted(order[: count // 2])), TEST: tuple(sorted(order[count // 2 :]))}
    return Parts(data.task, data.examples, data.labels, rows, {data.split: data.sha256})
