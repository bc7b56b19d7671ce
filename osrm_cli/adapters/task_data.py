"""An adapter's own data: its source, its length in tokens, and examples drawn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.tasks.loading import draw_examples, load_split, load_texts
from osrm_cli.tasks.task import Task, TaskSplit

MAX_LENGTH = 128  # where neither the adapter nor the task says otherwise
DEFAULT_DATA = "hub"


def resolve_max_length(recorded: int | None, task: Task) -> int:
    """Tokens that an example is cut to: as recorded, else as the task says."""
    return recorded or task.max_length or MAX_LENGTH


@dataclass(frozen=True)
class TaskSample:
    """One task's examples.

    Attributes:
        adapter: The task's adapter.
        data: The draw.
        source: Where it was drawn from, as ``--data`` names it.
    """

    adapter: Adapter
    data: TaskSplit
    source: str

    @property
    def max_length(self) -> int:
        """Tokens an example is cut to: as in training, else as the task says."""
        return resolve_max_length(self.adapter.max_length, self.data.task)

    def record(self) -> Mapping[str, Any]:
        """What ``osrm.json`` says of it."""
        examples = len(self.data.examples)
        return {"source": self.source, "split": self.data.split, "examples": examples, "sha256": self.data.sha256}


def draw_texts(adapters: Sequence[Adapter], data: str | None, k: int, seed: int) -> list[TaskSample]:
    """Draw ``k`` texts from every task's training split; their labels are not read.

    An adapter of another program does not say which task it is for: then the data has to tell, as it does in training.

    Args:
        adapters: The tasks' adapters.
        data: What the user says; by default what each adapter was trained on.
        k: Examples of each task; all of them where there are fewer.
        seed: Decides which.

    Raises:
        OsrmError: If the data is not known or missing.
    """
    found = []
    for adapter in adapters:
        source, recorded = data_source(adapter, data, "calibration"), adapter.record.get("task")
        task = Task.from_dict(recorded) if recorded else load_split(adapter.name, source, "train", 1).task
        texts = load_texts(task, source, "train")
        found.append(TaskSample(adapter, draw_examples(texts, k, seed), source))
    return found


def data_source(adapter: Adapter, given: str | None, needy: str) -> str:
    """Where an adapter's examples come from, as ``--data`` names it.

    Args:
        adapter: The task's adapter.
        given: What the user says; by default what the adapter was trained on.
        needy: What needs the data, for the message.

    Raises:
        OsrmError: If neither says it.
    """
    source = given or adapter.data_source
    if source is None:
        raise OsrmError(
            f"{needy} needs data of '{adapter.name}', {adapter.source} does not say what it was trained on",
            f"give --data: 'hub', 'mini', or a folder that holds {adapter.name}/train.jsonl",
        )
    return source
