"""The classifiers that a folder holds: an adapter is one, a merged folder has one for each task."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import read_config
from osrm_cli.errors import OsrmError
from osrm_cli.merging.record import HEAD_NAME, TASKS_FOLDER
from osrm_cli.merging.task_masks import read_task_delta
from osrm_cli.models.backbone import with_deltas, with_head, with_peft_adapter
from osrm_cli.storage import provenance, safetensors_io
from osrm_cli.storage.provenance import BaseModelId, Record


@dataclass(frozen=True)
class TaskClassifier:
    """One task's classifier.

    Attributes:
        task: The task's name.
        form: ``adapter``, ``model`` or ``task-aware``, see ``merged``.
        folder: The task's own folder.
        root: The folder that was given.
        facts: The folder's ``osrm.json``; empty for an adapter of another program.
    """

    task: str
    form: str
    folder: Path
    root: Path
    record: Record

    @property
    def base(self) -> BaseModelId | None:
        """The base model, where it is recorded."""
        return BaseModelId.of(self.record)

    @property
    def base_name(self) -> str | None:
        """The base model by the name in PEFT's settings, for adapters of other programs."""
        return read_config(self.folder).base_model if self.form == "adapter" else None

    @property
    def data(self) -> str | None:
        """The data that the task was read from, as ``--data`` names it."""
        return (self.record.get("data") or {}).get("source")

    @property
    def max_length(self) -> int | None:
        """The length that the single adapter was trained and scored with, where it is recorded."""
        dev = (self.record.get("settings") if self.folder == self.root else self.single_adapter.get("dev")) or {}
        return dev.get("max_length")

    @property
    def single_adapter(self) -> Mapping[str, Any]:
        """The single adapter that a merged classifier was made from: its path and recorded dev scores."""
        if self.folder == self.root:
            return {}
        return next((dict(source) for source in self.record.get("inputs", []) if source.get("task") == self.task), {})


def open_classifiers(folder: Path) -> dict[str, TaskClassifier]:
    """Every classifier of a folder, by task.

    Raises:
        OsrmError: If the folder is no adapter, no merged folder, or was merged from adapters without heads.
    """
    if not folder.is_dir():
        raise OsrmError(f"{folder} is missing", "make it with 'osrm merge adapters/*'")
    facts = provenance.read_record(folder)
    if "form" not in facts:
        read_config(folder)
        name = (facts.get("task") or {}).get("name") or folder.resolve().name
        return {name: TaskClassifier(name, "adapter", folder, folder, facts)}
    tasks = sorted(path for path in (folder / TASKS_FOLDER).glob("[!.]*") if path.is_dir())
    if not tasks:
        raise OsrmError(f"{folder} holds no task's head, only the merged update", "merge adapters that have heads")
    return {
        path.name: TaskClassifier(path.name, facts["form"], path, folder, provenance.read_record(path) or facts)
        for path in tasks
    }


@contextmanager
def attach_classifier(model: PreTrainedModel, held: TaskClassifier, num_labels: int) -> Iterator[torch.nn.Module]:
    """The classifier of one task.

    Args:
        model: The base model; for the form ``model``, the merged model.
        held: The task's classifier on disk.
        num_labels: Number of its outputs.

    Raises:
        OsrmError: If it has no head, or one that does not fit.
    """
    if held.form == "adapter":
        with with_peft_adapter(model, held.folder, num_labels) as whole:
            yield whole
        return
    layers = list(held.record["rescalers"]) if held.form == "task-aware" else []
    updates = lambda layer: read_task_delta(held.root, held.task, layer)  # noqa: E731
    with (
        with_deltas(model, updates, layers),
        with_head(model, read_head(held), num_labels, held.folder / HEAD_NAME) as whole,
    ):
        yield whole


def read_head(held: TaskClassifier) -> dict[str, torch.Tensor]:
    """The tensors of a task's head, by their name in the base model.

    Raises:
        OsrmError: If the file that should hold them is missing or damaged.
    """
    if held.form == "adapter":
        return Adapter.open(held.folder).head_tensors()
    with safetensors_io.open_tensors(held.folder / HEAD_NAME) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
