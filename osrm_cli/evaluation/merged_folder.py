"""A merged folder, opened once: its form, base model, single adapters, and each task's classifier.

An adapter folder is opened in the same way, as the classifier of one task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME, TEXT_TASK_TYPES
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.output.task_masks import list_task_layers, read_task_delta
from osrm_cli.merging.record import HEAD_NAME, TASKS_FOLDER
from osrm_cli.models.base_model import find_base_model, resolve_base_model
from osrm_cli.storage import hub, input_files, records
from osrm_cli.storage.records import BaseModelId, Record
from osrm_cli.tasks.task import GENERATION

_HINT_IF_MOVED = "give their folder with --adapters FOLDER"


@dataclass(frozen=True)
class ScoredTask:
    """One task's model on disk; ``Backbone.attach`` attaches it to a model.

    Attributes:
        task: The task's name.
        form: ``adapter``, ``model`` or ``task-aware``, see ``merging.output.merged_folder``.
        folder: The task's own folder; of a task without a head, which is answered with text, the merged folder.
        root: The folder that was opened.
        record: The folder's ``osrm.json``; empty for an adapter of another program.
        adapter: The folder opened as an adapter, if it is one.
    """

    task: str
    form: str
    folder: Path
    root: Path
    record: Record
    adapter: Adapter | None = None

    @property
    def data_source(self) -> str | None:
        """The task's data, as ``--data`` names it."""
        data = self.record.get("data") if self.is_single_adapter or self.has_folder else self.single_adapter.get("data")
        return (data or {}).get("source")

    @property
    def template(self) -> Mapping[str, Any] | None:
        """What the adapter saw in training beside the texts, see ``chat_template_record``; of a text task alone."""
        record = self.record if self.is_single_adapter else self.single_adapter
        return record.get("template")

    @property
    def has_folder(self) -> bool:
        """Whether the task has a folder of its own, with a head or a mask."""
        return self.folder != self.root

    @property
    def max_length(self) -> int | None:
        """Maximum length with which the single adapter was trained and scored, if it is recorded."""
        settings = self.record.get("settings") if self.is_single_adapter else self.single_adapter.get("dev")
        return (settings or {}).get("max_length")

    @cached_property
    def is_single_adapter(self) -> bool:
        """Whether this is an adapter folder, not a task of a merged folder."""
        return "form" not in self.record

    @cached_property
    def single_adapter(self) -> Mapping[str, Any]:
        """The merge's record of the adapter that this classifier comes from: path, digest, dev scores."""
        if self.is_single_adapter:
            return {}
        return next((dict(row) for row in self.record.get("inputs", []) if row.get("task") == self.task), {})

    def recorded_adapter(self) -> tuple[str, str]:
        """Path and digest of the adapter that this classifier comes from.

        Raises:
            OsrmError: If they are not recorded.
        """
        row = self.single_adapter
        if not row.get("path") or not row.get("sha256"):
            raise OsrmError(
                f"{self.folder} does not record the adapter that '{self.task}' was merged from", "merge again"
            )
        return row["path"], row["sha256"]

    def read_head(self) -> dict[str, torch.Tensor]:
        """The tensors of the head, by their name in the base model.

        Raises:
            OsrmError: If their file is missing or damaged.
        """
        if self.adapter:
            return self.adapter.head_tensors()
        with input_files.open_safetensors(self.head_path) as file:
            head = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        for name, tensor in head.items():
            if not tensor.is_floating_point() or not input_files.all_finite(tensor):
                problem = "NaN or infinity" if tensor.is_floating_point() else "no floating-point numbers"
                raise OsrmError(f"{self.head_path}: {problem} in {name}", "merge again")
        return head

    @property
    def head_path(self) -> Path:
        """The file of the head, if the folder is not a PEFT folder."""
        return self.folder / HEAD_NAME

    @property
    def delta_layers(self) -> list[str]:
        """Layers to which the task's own update is added; none if the model contains it already."""
        return list_task_layers(self.root, self.task) if self.form == "task-aware" else []

    def read_delta(self, layer: str) -> torch.Tensor:
        """The task's own update of one of ``delta_layers``, ``(d_out, d_in)``."""
        return read_task_delta(self.root, self.task, layer)


@dataclass(frozen=True)
class ScoredFolder:
    """A merged folder, or an adapter folder.

    Attributes:
        path: The folder.
        form: ``adapter``, ``model`` or ``task-aware``.
        record: Its ``osrm.json``; empty for an adapter of another program.
        tasks: Each task's classifier.
        adapter: The folder opened as an adapter, if it is one.
        teachers: By task, adapters of other base models that the merge has learned from.
    """

    path: Path
    form: str
    record: Record
    tasks: Mapping[str, ScoredTask]
    adapter: Adapter | None = None
    teachers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the records of a folder and of its tasks.

        Raises:
            OsrmError: If it is neither an adapter nor a merged folder, or was merged from adapters without heads.
        """
        if not path.is_dir():
            raise OsrmError(f"{path} is missing", "make it with 'osrm merge adapters/*'")
        adapter = open_adapter(path) if (path / CONFIG_NAME).is_file() else None
        record = adapter.record if adapter else records.read_record(path)
        form = record.get("form") or "adapter"
        if form == "adapter" and not adapter:
            adapter = open_adapter(path)  # says what is missing
        if adapter and "form" not in record:
            task = ScoredTask(adapter.name, form, path, path, record, adapter)
            return cls(path, form, record, {task.task: task}, adapter)
        folders = sorted(folder for folder in (path / TASKS_FOLDER).glob("[!.]*") if folder.is_dir())
        tasks = {folder.name: _open_scored_task(folder, form, path, record) for folder in folders}
        for name in _tasks_scored_as_text(adapter, record):
            tasks.setdefault(name, ScoredTask(name, form, path, path, record, adapter))
        if not tasks:
            raise OsrmError(f"{path} contains no head, only the merged update", "merge adapters that have heads")
        return cls(path, form, record, dict(sorted(tasks.items())), adapter, record.get("teachers") or {})

    def choose_tasks(self, names: list[str]) -> dict[str, ScoredTask]:
        """The classifiers of some tasks; of all if there are no names.

        Raises:
            OsrmError: If there is no task of a name.
        """
        for name in names:
            if name not in self.tasks:
                raise OsrmError(f"{self.path} has no task '{name}'", f"its tasks: {', '.join(self.tasks)}")
        return {name: classifier for name, classifier in self.tasks.items() if not names or name in names}

    @property
    def base(self) -> BaseModelId | None:
        """The base model that the folder was made for, where this program recorded it."""
        return self.adapter.base if self.adapter else BaseModelId.from_record(self.record)

    def resolve_base_model(self, name: str | None, revision: str | None) -> tuple[Path, BaseModelId]:
        """The base model on disk: its folder and its identity.

        Args:
            name: The value of ``--model``.
            revision: The value of ``--revision``.

        Raises:
            OsrmError: If it is not known, or its weights differ from those that the folder was made for.
        """
        config_name = self.adapter.config.base_model if self.adapter else None
        return resolve_base_model(self.path, self.base, config_name, name, revision)

    def resolve_model(self, name: str | None, revision: str | None) -> tuple[Path, BaseModelId | None]:
        """The model that the classifiers are attached to: the base model, or the folder itself if it is a whole model.

        Args:
            name: The value of ``--model``.
            revision: The value of ``--revision``.

        Raises:
            OsrmError: If it is not known, or its weights differ from those of the folder.
        """
        if self.form == "model":
            return find_base_model(str(self.path)), self.base
        return self.resolve_base_model(name, revision)

    def describe(self) -> dict[str, Any]:
        """The entries of ``scores.json`` on its origin: adapters, method, options, and whether heads are calibrated.

        Raises:
            OsrmError: If a merged folder does not record them.
        """
        if self.adapter and "form" not in self.record:
            adapters = {self.adapter.name: self.adapter.describe()}
            return {"adapters": adapters, "method": None, "options": {}, "calibrated": False}
        settings, rows = self.record.get("settings") or {}, self.record.get("inputs", [])
        method, options = settings.get("method"), settings.get("options")
        is_whole = isinstance(method, str) and isinstance(options, dict)
        if not is_whole or not rows or not all(row.get("task") and row.get("sha256") for row in rows):
            raise OsrmError(
                f"{self.path / records.RECORD_NAME} does not record what was merged, and how", "merge again"
            )
        return {
            "adapters": {row["task"]: self._describe_single_adapter(row) for row in rows},
            "method": method,
            "options": options,
            "calibrated": "calibration" in self.record,
        }

    @cached_property
    def single_adapters(self) -> Mapping[str, Adapter | OsrmError]:
        """By task, the adapter that was merged; the error in its place if it is missing or has changed since."""
        return {row["task"]: _open_merged_adapter(row) for row in self.record.get("inputs", []) if row.get("task")}

    def open_single_adapters(self, folder: Path | None = None) -> list[Adapter]:
        """The adapter of each task, with the weights that were merged, named after the task.

        Args:
            folder: Folder that contains the adapters, in folders of any name; by default the paths that were merged.

        Raises:
            OsrmError: If one is missing, has changed, or belongs to another base model.
        """
        if self.teachers:
            task = min(self.teachers)
            raise OsrmError(
                f"{self.path}: the adapter of '{task}' belongs to another base model than the merge",
                "heads of such tasks were learned with the merge: leave the calibration out",
            )
        if folder is None:
            return [self._open_single_adapter(task) for task in self.tasks.values()]
        moved = [open_adapter(path.parent) for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))]
        by_digest = {adapter.sha256(): adapter for adapter in moved}
        adapters = []
        for task, classifier in self.tasks.items():
            path, digest = classifier.recorded_adapter()
            if digest not in by_digest:
                raise OsrmError(
                    f"none of the {len(moved)} adapters in {folder} is the one that '{task}' was merged from",
                    f"it was {path}; merge again if it has changed",
                )
            adapters.append(replace(by_digest[digest], name=task))
        return adapters

    def _open_single_adapter(self, task: ScoredTask) -> Adapter:
        task.recorded_adapter()  # raises if there is none
        adapter = self.single_adapters[task.task]
        if isinstance(adapter, OsrmError):
            raise adapter
        return replace(adapter, name=task.task)

    def _describe_single_adapter(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The record of an adapter that was merged, with the adapter's own record if it is unchanged."""
        adapter = self.single_adapters[row["task"]]
        own = {} if isinstance(adapter, OsrmError) else {**adapter.origin(), "drift": adapter.drift}
        return {"start": None, "train": None, "drift": None, **own, "path": row["path"], "sha256": row["sha256"]}


def _open_scored_task(folder: Path, form: str, root: Path, record: Record) -> ScoredTask:
    """A task that has a folder of its own."""
    if folder.is_symlink():
        raise OsrmError(f"{folder} is a link to a folder, expected a folder", "copy the folder there")
    if form == "adapter":
        adapter = open_adapter(folder)
        return ScoredTask(folder.name, form, folder, root, adapter.record or record, adapter)
    return ScoredTask(folder.name, form, folder, root, records.read_record(folder) or record)


def _tasks_scored_as_text(adapter: Adapter | None, record: Record) -> list[str]:
    """Tasks of a merged folder that are answered with text, or may be: another program's adapters do not say."""
    tasks = record.get("tasks") or {}
    is_language_model = adapter is None or adapter.config.task_type in TEXT_TASK_TYPES
    return [
        name for name, task in tasks.items() if (is_language_model if task is None else task.get("kind") == GENERATION)
    ]


def _open_merged_adapter(row: Mapping[str, Any]) -> Adapter | OsrmError:
    """An adapter that was merged, or what keeps it from being opened; ``row`` is the merge's record of it."""
    try:
        hub.check_recorded_input(row)
        adapter = open_adapter(row["path"])
    except OsrmError as error:
        return OsrmError(f"the adapter that '{row['task']}' was merged from is not available: {error}", _HINT_IF_MOVED)
    if adapter.sha256() != row.get("sha256"):
        return OsrmError(f"{adapter.source} has changed since '{row['task']}' was merged from it", _HINT_IF_MOVED)
    return adapter
