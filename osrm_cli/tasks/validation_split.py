"""Splits a task's examples into a validation part, which selects hyperparameters, and a test part, which reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.draws import draw_order_by_hash
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.task import Example, Label, Task, TaskSplit, TextExample

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class ValidationSplit:
    """A task's examples in a validation and a test part.

    Attributes:
        task: The task.
        examples: All of them, each once.
        labels: Their labels; none where the answer is text.
        indices: Indices of the examples by part.
        sha256: Digest of the examples by split.
        warnings: What the user should know about how they were read.
    """

    task: Task
    examples: tuple[Example, ...]
    labels: Sequence[Label]
    indices: Mapping[str, tuple[int, ...]]
    sha256: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def labels_of(self, part: str) -> list[Label]:
        """One part's labels."""
        return [self.labels[row] for row in self.indices[part]] if self.labels else []

    def text_examples_of(self, part: str) -> list[TextExample]:
        """One part's examples, where the answer is text."""
        examples = [self.examples[row] for row in self.indices[part]]
        return [example for example in examples if isinstance(example, TextExample)]


def load_validation_split(
    name: str, source: str, split: str, validation_split: str | None, limit: int | None, seed: int
) -> ValidationSplit:
    """Read a task's examples; without a split for validation, a random half of ``split`` is the validation part.

    Args:
        name: The task.
        source: Data as ``--data`` names them.
        split: The split that reports.
        validation_split: The split that selects; ``None`` for a random half of ``split``.
        limit: Read no more than the first so many examples of a split.
        seed: Decides which half an example belongs to.

    Raises:
        OsrmError: If there is no such split, it has no labels, or too few examples.
    """
    test = load_split(name, source, split, limit)
    if validation_split is None:
        return _halve_validation_split(test, seed)
    validation = load_split(name, source, validation_split, limit)
    first = len(validation.examples)
    return ValidationSplit(
        test.task,
        validation.examples + test.examples,
        [] if test.task.is_text else validation.labels + test.labels,
        {VALIDATION: tuple(range(first)), TEST: tuple(range(first, first + len(test.examples)))},
        {validation_split: validation.sha256, split: test.sha256},
        tuple(dict.fromkeys(validation.warnings + test.warnings)),
    )


def _halve_validation_split(data: TaskSplit, seed: int) -> ValidationSplit:
    """An example's half comes from a hash of seed, task and index: every sweep of a task has the same halves."""
    count = len(data.examples)
    if count < 2:
        raise OsrmError(
            f"{data.source} has {count} example, two halves need two or more", "use --validation-split, or more data"
        )
    order = draw_order_by_hash(range(count), "halves", seed, data.task.name, data.split)
    rows = {VALIDATION: tuple(sorted(order[: count // 2])), TEST: tuple(sorted(order[count // 2 :]))}
    labels = [] if data.task.is_text else data.labels
    return ValidationSplit(data.task, data.examples, labels, rows, {data.split: data.sha256}, data.warnings)
