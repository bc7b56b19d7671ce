"""The tasks that a sweep scores: adapter, examples, and unlabelled examples that calibrate the head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from osrm_cli.adapters import task_data
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.tasks.loading import choose_task_source
from osrm_cli.tasks.task import Example
from osrm_cli.tasks.validation_split import ValidationSplit, load_validation_split


@dataclass(frozen=True)
class SweepTask:
    """One task to score.

    Attributes:
        index: Index of its adapter among all that are merged.
        adapter: Its adapter, with the head.
        source: Its data, as ``--data`` names it.
        parts: Its validation and test examples.
        max_length: Maximum tokens per example.
        unlabelled: Training examples, without labels, that calibrate the head; none without calibration.
    """

    index: int
    adapter: Adapter
    source: str
    parts: ValidationSplit
    max_length: int
    unlabelled: tuple[Example, ...] = ()


@dataclass(frozen=True)
class SweepDataSpec:
    """The data that a sweep reads of every task.

    Attributes:
        data: The value of ``--data``; ``None`` for the data that each adapter was trained on.
        split: Split to score on.
        validation_split: Split that selects; ``None`` for a half of ``split``.
        limit: Number of examples to read of a split, the first ones; ``None`` for all.
        max_length: Tokens to keep; ``None`` for the length with which each adapter was trained.
        unlabelled: Number of training examples that calibrate a head; 0 for no calibration.
        seed: Seed of the halves, and of the draw of training examples.
    """

    data: str | None
    split: str
    validation_split: str | None
    limit: int | None
    max_length: int | None
    unlabelled: int
    seed: int

    def load_tasks(self, adapters: Sequence[Adapter], names: Sequence[str]) -> list[SweepTask]:
        """Read the tasks ``names``, or every adapter's task if ``names`` is empty.

        Raises:
            OsrmError: If no adapter belongs to a task, or its data cannot be read.
        """
        task_names = [adapter.name for adapter in adapters]
        for name in names:
            if name not in task_names:
                raise OsrmError(f"no adapter belongs to task '{name}'", f"tasks: {', '.join(task_names)}")
        indices = [index for index, name in enumerate(task_names) if not names or name in names]
        tasks = [self._load_task(index, adapters[index]) for index in indices]
        if not self.unlabelled:
            return tasks
        samples = task_data.draw_adapter_texts(
            [adapters[index] for index in indices], self.data, self.unlabelled, self.seed
        )
        pairs = zip(tasks, samples, strict=True)
        return [replace(task, unlabelled=sample.data.examples) for task, sample in pairs]

    def _load_task(self, index: int, adapter: Adapter) -> SweepTask:
        name = adapter.name
        source = choose_task_source(name, adapter.data_source, self.data, adapter.source) or task_data.DEFAULT_DATA
        parts = load_validation_split(name, source, self.split, self.validation_split, self.limit, self.seed)
        length = self.max_length or task_data.resolve_max_length(adapter.max_length, parts.task)
        return SweepTask(index, adapter, source, parts, length)
