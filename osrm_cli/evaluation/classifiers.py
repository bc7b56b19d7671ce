"""The classifiers that a folder holds: an adapter is one, a merged folder has one for each task."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters import config as adapter_config
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging import task_masks as task_aware
from osrm_cli.merging.record import HEAD, TASKS
from osrm_cli.models import backbone as scoring
from osrm_cli.storage import provenance, safetensors_io
from osrm_cli.storage.provenance import Base, Record


@dataclass(frozen=True)
class Held:
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
    facts: Record

    @property
    def base(self) -> Base | None:
        """The base model, where it is recorded."""
        return Base.of(self.facts)

    @property
    def base_name(self) -> str | None:
        """The base model by the name in PEFT's settings, for adapters of other programs."""
        return adapter_config.read(self.folder).base_model if self.form == "adapter" else None

    @property
    def data(self) -> str | None:
        """The data that the task was read from, as ``--data`` names it."""
        return (self.facts.get("data") or {}).get("source")

    @property
    def max_length(self) -> int | None:
        """The length that the single adapter was trained and scored with, where it is recorded."""
        dev = (self.facts.get("settings") if self.folder == self.root else self.source.get("dev")) or {}
        return dev.get("max_length")

    @property
    def source(self) -> Mapping[str, Any]:
        """The single adapter that a merged classifier was made from: its path and recorded dev scores."""
        if self.folder == self.root:
            return {}
        return next((dict(source) for source in self.facts.get("inputs", []) if source.get("task") == self.task), {})


def held(folder: Path) -> dict[str, Held]:
    """Every classifier of a folder, by task.

    Raises:
        OsrmError: If the folder is no adapter, no merged folder, or was merged from adapters without heads.
    """
    if not folder.is_dir():
        raise OsrmError(f"{folder} is missing", "make it with 'osrm merge adapters/*'")
    facts = provenance.read(folder)
    if "form" not in facts:
        adapter_config.read(folder)
        name = (facts.get("task") or {}).get("name") or folder.resolve().name
        return {name: Held(name, "adapter", folder, folder, facts)}
    tasks = sorted(path for path in (folder / TASKS).glob("[!.]*") if path.is_dir())
    if not tasks:
        raise OsrmError(f"{folder} holds no task's head, only the merged update", "merge adapters that have heads")
    return {path.name: Held(path.name, facts["form"], path, folder, provenance.read(path) or facts) for path in tasks}


@contextmanager
def classifier(model: PreTrainedModel, held: Held, num_labels: int) -> Iterator[torch.nn.Module]:
    """The classifier of one task.

    Args:
        model: The base model; for the form ``model``, the merged model.
        held: The task's classifier on disk.
        num_labels: Number of its outputs.

    Raises:
        OsrmError: If it has no head, or one that does not fit.
    """
    if held.form == "adapter":
        with scoring.adapted(model, held.folder, num_labels) as whole:
            yield whole
        return
    layers = list(held.facts["rescalers"]) if held.form == "task-aware" else []
    updates = lambda layer: task_aware.read(held.root, held.task, layer)  # noqa: E731
    with (
        scoring.shifted(model, updates, layers),
        scoring.headed(model, head(held), num_labels, held.folder / HEAD) as whole,
    ):
        yield whole


def head(held: Held) -> dict[str, torch.Tensor]:
    """The tensors of a task's head, by their name in the base model.

    Raises:
        OsrmError: If the file that should hold them is missing or damaged.
    """
    if held.form == "adapter":
        return Adapter.open(held.folder).heads()
    with safetensors_io.open_tensors(held.folder / HEAD) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
