"""An adapter's own data: its source, its length in tokens, and examples drawn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.tasks.loading import choose_task_source, draw_examples, load_prompts, load_split, load_texts
from osrm_cli.tasks.task import Task, TaskSplit
from osrm_cli.tasks.text.rows import TEXT

DEFAULT_DATA = "hub"
MAX_LENGTH = 128  # tokens, unless the adapter or the task specifies another
MAX_TEXT_LENGTH = 512  # tokens of prompt and completion together


def resolve_max_length(recorded: int | None, task: Task) -> int:
    """Maximum tokens per example: the recorded number, else the task's, else the default of its kind."""
    return recorded or task.max_length or (MAX_TEXT_LENGTH if task.is_text else MAX_LENGTH)


@dataclass(frozen=True)
class AdapterTaskSample:
    """One task's examples.

    Attributes:
        adapter: The task's adapter.
        data: The examples.
        max_length: Maximum tokens per example: as in training, else the task's, see ``resolve_max_length``.
        record: The entry in ``osrm.json``: source, split, number of examples and digest.
    """

    adapter: Adapter
    data: TaskSplit
    max_length: int
    record: Mapping[str, Any]

    @property
    def has_prompts(self) -> bool:
        """Whether a text task's rows have prompts to answer, not texts alone."""
        return self.data.task.columns != (TEXT,)

    @classmethod
    def of(cls, adapter: Adapter, data: TaskSplit, source: str) -> Self:
        """The sample of a task.

        Args:
            adapter: The task's adapter.
            data: The examples.
            source: The data that they were drawn from, as ``--data`` names it.
        """
        record = {"source": source, "split": data.split, "examples": len(data.examples), "sha256": data.sha256}
        return cls(adapter, data, resolve_max_length(adapter.max_length, data.task), record)


def draw_adapter_texts(
    adapters: Sequence[Adapter],
    data: str | None,
    k: int,
    seed: int,
    purpose: str = "calibration",
    answered: bool = False,
) -> list[AdapterTaskSample]:
    """Draw ``k`` texts from every task's training split; their labels are not read.

    The task of an adapter of another program is not recorded; it is then inferred from the data, as in training.

    Args:
        adapters: The tasks' adapters.
        data: The value of ``--data``; by default the data that each adapter was trained on.
        k: Examples of each task; all of them where there are fewer.
        seed: Seed of the draw.
        purpose: Feature that needs the texts, for messages.
        answered: Read the completions of tasks that are answered with text, too.

    Raises:
        OsrmError: If the data is not known or missing.
    """
    samples = []
    for adapter in adapters:
        source, recorded = adapter_data_source(adapter, data, purpose), adapter.record.get("task") or {}
        task = Task.from_dict(recorded) if "columns" in recorded else None
        if adapter.is_text:
            texts = load_prompts(adapter.name, source, "train", answered)
            if task:  # which may have been trained with settings that this data does not have
                texts = replace(texts, task=replace(task, columns=texts.task.columns))
        else:
            texts = load_texts(task or load_split(adapter.name, source, "train", 1).task, source, "train")
        samples.append(AdapterTaskSample.of(adapter, draw_examples(texts, k, seed), source))
    return samples


def draw_adapter_examples(
    adapters: Sequence[Adapter], data: str | None, k: int, seed: int, purpose: str
) -> list[AdapterTaskSample]:
    """Draw ``k`` examples from every task's training split, with their labels, or their completions.

    Args:
        adapters: The tasks' adapters.
        data: The value of ``--data``; by default the data that each adapter was trained on.
        k: Examples of each task; all of them where there are fewer.
        seed: Seed of the draw.
        purpose: Feature that needs the examples, for messages.

    Raises:
        OsrmError: If the data is not known or missing, or an example has no label or completion.
    """
    samples = []
    for adapter in adapters:
        source = adapter_data_source(adapter, data, purpose)
        if adapter.is_text:
            whole = load_prompts(adapter.name, source, "train", answered=True)
        else:
            whole = load_split(adapter.name, source, "train")
        samples.append(AdapterTaskSample.of(adapter, draw_examples(whole, k, seed), source))
    return samples


def adapter_data_source(adapter: Adapter, user_source: str | None, purpose: str) -> str:
    """The source of an adapter's examples, as ``--data`` names it.

    Args:
        adapter: The task's adapter.
        user_source: The value of ``--data``; by default the data that the adapter was trained on.
        purpose: Feature that needs the data, for the message.

    Raises:
        OsrmError: If neither names it.
    """
    source = choose_task_source(adapter.name, adapter.data_source, user_source, adapter.source)
    if source is None:
        raise OsrmError(
            f"{purpose} needs data of '{adapter.name}', but {adapter.source} does not record its training data",
            f"give --data: 'hub', 'mini', or a folder with {adapter.name}/train.jsonl",
        )
    return source
