"""What every peer is given: the texts of each task."""

from pathlib import Path
from typing import Any

from osrm_cli.tasks.loading import load, names
from osrm_cli.tasks.task import Data


def read(data: Path, split: str = "train", limit: int | None = None) -> dict[str, Data]:
    """One split of every task of a folder."""
    return {name: load(name, data, split, limit) for name in names(data)}


def columns(data: Data) -> list[list[str]]:
    """The texts as tokenizers take them: one list, or one for each side of the pair."""
    return [list(column) for column in zip(*(example.texts for example in data.examples), strict=True)]


def padded(tokenizer: Any, data: Data) -> Any:
    """Every example padded to 128 tokens."""
    return tokenizer(*columns(data), padding="max_length", max_length=128, truncation=True, return_tensors="pt")
