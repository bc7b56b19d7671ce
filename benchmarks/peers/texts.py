"""What every peer is given: the texts of each task."""

from pathlib import Path
from typing import Any

from osrm_cli.tasks.loading import list_tasks, load_split
from osrm_cli.tasks.task import TaskSplit


def read(data: Path, split: str = "train", limit: int | None = None) -> dict[str, TaskSplit]:
    """One split of every task of a folder."""
    return {name: load_split(name, data, split, limit) for name in list_tasks(data)}


def columns(data: TaskSplit) -> list[list[str]]:
    """The texts as tokenizers take them: one list, or one for each side of the pair."""
    return [list(column) for column in zip(*(example.texts for example in data.examples), strict=True)]


def padded(tokenizer: Any, data: TaskSplit) -> Any:
    """Every example padded to 128 tokens."""
    return tokenizer(*columns(data), padding="max_length", max_length=128, truncation=True, return_tensors="pt")
