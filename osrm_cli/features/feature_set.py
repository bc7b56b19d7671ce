"""All tasks' activation statistics of one base model, read layer by layer."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.features_file import GRADIENT, FeatureLayer, FeaturesFile, FeaturesReader
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.linalg.second_moment import SecondMoment, others_moment, stack_moment_rows, total_moment
from osrm_cli.storage.provenance import check_base_provenance
from osrm_cli.storage.records import BaseModelId

# What numbers computed from a statistic describe; the most informative statistic first.
READINGS = {
    SECOND_MOMENT: "all tokens",
    "sketch": "all tokens but for what the sketch leaves out",
    "samples": "the examples' mean tokens, not single tokens",
    "mean": "the tasks' mean tokens alone: one direction each, no spread",
}
ALL_KINDS = tuple(READINGS)


@dataclass(frozen=True)
class FeatureSetLayer:
    """One input in the model, as each task's features describe it, and the layers that read it.

    Attributes:
        layers: Names of the layers.
        moments: Second moment of the input by task, ``(d_in, d_in)`` or rows ``(n, d_in)``.
        unseen: By task, the largest share of its energy that one direction may hold unseen; 0 unless sketched.
        readers: Open features files by task.
    """

    layers: Sequence[str]
    moments: Mapping[str, SecondMoment]
    unseen: Mapping[str, float]
    readers: Mapping[str, FeaturesReader]

    def others(self, task: str, weighted: bool = True) -> SecondMoment:
        """``C_out`` of one task: the average of the other tasks' second moments, each divided by its trace.

        Rows are stacked: they stand for the sum, which is the average up to a factor.

        Args:
            task: The task that is left out; it need not be among the ``moments``.
            weighted: Give every task the same weight. Otherwise rows are taken as they are stored, as in Eq. 3 of
                arXiv:2505.22934; moments always have equal weight.

        Raises:
            OsrmError: If there is no other task.
        """
        others = [moment for name, moment in self.moments.items() if name != task]
        if not others:
            raise OsrmError(f"there are no features of a task other than '{task}'")
        if others[0].factored:
            return SecondMoment(stack_moment_rows([moment.matrix for moment in others], weighted), factored=True)
        if task not in self.moments:
            return SecondMoment(self._total_moment / len(others), factored=False)
        return SecondMoment(
            others_moment(self._total_moment, self.moments[task].matrix, len(self.moments)), factored=False
        )

    def others_unseen(self, task: str) -> float:
        """Mean over the other tasks of ``unseen``."""
        shares = [share for name, share in self.unseen.items() if name != task]
        return sum(shares) / max(len(shares), 1)

    def gradient(self, task: str, layer: str) -> torch.Tensor:
        """Gradient of the task's own loss, ``(d_out, d_in)``.

        Raises:
            OsrmError: If the task's features hold none.
        """
        return self.readers[task].read(layer, GRADIENT)

    @cached_property
    def _total_moment(self) -> torch.Tensor:
        """All tasks' moments: one pass, however many tasks are left out in turn."""
        return total_moment(moment.matrix for moment in self.moments.values())


@dataclass(frozen=True)
class FeatureSet:
    """Features files of one base model, and the statistic to read from each.

    Attributes:
        files: By task; their layers are the same.
        statistics: Name of the statistic to read, for each task that is read; empty until one is selected.

    Raises:
        OsrmError: If a file differs from the others in base model, layers or pooling.
    """

    files: Mapping[str, FeaturesFile]
    statistics: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open every features file of a folder, in the order of their names; shards stand for a missing file.

        Raises:
            OsrmError: If the folder is missing or empty, two files are of one task, or files or shards do not fit
                together.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise OsrmError(f"{folder} is missing", "make it with 'osrm collect --task NAME'")
        paths = {
            shards.unsharded_features_path(path)
            for path in folder.glob("*.safetensors")
            if not path.name.startswith(".")
        }
        if not paths:
            raise OsrmError(
                f"{folder} holds no features files (*.safetensors)", "make them with 'osrm collect --task NAME'"
            )
        files: dict[str, FeaturesFile] = {}
        for file in [FeaturesFile.open(path) for path in sorted(paths)]:
            twin = files.setdefault(file.task, file)
            if twin is not file:
                raise OsrmError(f"{twin.path} and {file.path} both hold task '{file.task}'", "remove one of them")
        return cls(files)

    def __post_init__(self) -> None:
        _check_features_compatible(list(self.files.values()))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.files)

    @property
    def base(self) -> BaseModelId:
        """The base model."""
        return self._first.base

    @property
    def target_layers(self) -> Mapping[str, FeatureLayer]:
        """The layers that the features describe, in the order of their names."""
        return self._first.layers

    @property
    def target_modules(self) -> Mapping[str, Any]:
        """``target_modules`` and ``fan_in_fan_out``, as PEFT's configuration has them."""
        return {name: self._first.record[name] for name in ("target_modules", "fan_in_fan_out")}

    def task_type(self, task: str) -> str:
        """PEFT's ``task_type`` of a task's adapter; that of the other tasks where it has no features of its own."""
        file = self.files.get(task, self._first)
        return str(file.record.get("task_type", "SEQ_CLS"))

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._first.path.parent

    @property
    def paths(self) -> list[Path]:
        """Every file that is read, shards included."""
        return [path for file in self.files.values() for path in file.files]

    @property
    def kind(self) -> str:
        """The selected statistic without its size: ``sketch`` for ``sketch:64``."""
        return next(iter(self.statistics.values())).partition(":")[0]

    @property
    def max_width(self) -> int:
        """Width of the widest input."""
        return max(layer.d_in for layer in self.target_layers.values())

    @property
    def _first(self) -> FeaturesFile:
        return next(iter(self.files.values()))

    def other_tasks(self, task: str) -> list[str]:
        """All tasks but one.

        Raises:
            OsrmError: If there are none.
        """
        others = [name for name in self.files if name != task]
        if not others:
            raise OsrmError(
                f"{self.folder} holds no features of a task other than '{task}'",
                "collect the other tasks first: osrm collect --task OTHER",
            )
        return others

    def require_task(self, task: str, consumer: str) -> None:
        """Check that there are features of a task.

        Raises:
            OsrmError: If not; ``consumer`` is what needs them.
        """
        if task not in self.files:
            near = difflib.get_close_matches(task, self.files, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"osrm collect --task {task}"
            raise OsrmError(f"{consumer} needs the features of '{task}' itself", hint)

    def only(self, tasks: Collection[str]) -> Self:
        """The same with these tasks alone, in the old order."""
        return replace(self, files={name: file for name, file in self.files.items() if name in tasks})

    def with_statistics(self, statistics: Mapping[str, str]) -> Self:
        """The same with these statistics selected, by task."""
        return replace(self, statistics=statistics)

    def select(self, kinds: Sequence[str] = ALL_KINDS, consumer: str = "this") -> Self:
        """Select the best kind of statistic that every file holds.

        Args:
            kinds: Those that will do, the best one first.
            consumer: What needs it, for the error.

        Raises:
            OsrmError: If the files have none of them in common.
        """
        for kind in kinds:
            names = {
                task: name
                for task, file in self.files.items()
                for name in file.statistics
                if name.partition(":")[0] == kind
            }
            if len(names) == len(self.files):
                return self.with_statistics(names)
        lacking = (f for f in self.files.values() if not {n.partition(":")[0] for n in f.statistics} & {*kinds})
        odd = next(lacking, self._first)
        raise OsrmError(
            f"{consumer} needs {' or '.join(kinds)} of every task, {odd.path} holds {', '.join(odd.statistics)}",
            f"osrm collect {' '.join(f'--task {task}' for task in self.files)} --statistic {kinds[0]} --overwrite",
        )

    def warnings(self) -> list[str]:
        """Reasons to doubt numbers computed from the selected statistic, one line each."""
        if self.kind in ("samples", "mean"):
            return [f"read from {self.kind}, so the numbers describe {READINGS[self.kind]}"]
        if self.kind != SECOND_MOMENT:
            return []
        return [
            f"{file.path}: too few tokens ({file.tokens}) for width {self.max_width}: unused directions cannot be told "
            "from unseen ones; increase --samples"
            for file in self.files.values()
            if file.tokens < self.max_width
        ]

    def groups(self) -> list[list[str]]:
        """Layers that read the same input, together; each layer alone where no statistic is selected."""
        files = [self.files[task] for task in self.statistics]
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in self.target_layers:
            groups.setdefault(tuple(file.layers[name].source for file in files) or (name,), []).append(name)
        return list(groups.values())

    def layers(self, per_token: bool = True) -> Iterator[FeatureSetLayer]:
        """Yield every input with the layers that read it; memory holds one at a time, and each tensor is read once.

        Args:
            per_token: Scale every ``C`` to ``E[x x^T]``. Otherwise rows are as stored, which for a sketch is the sum
                over all tokens.

        Raises:
            OsrmError: If a file lacks a statistic or is damaged.
        """
        readers = {task: file.reader() for task, file in self.files.items()}
        for group in self.groups():
            moments, unseen = {}, {}
            for task, statistic in self.statistics.items():
                moments[task] = self._second_moment(readers[task].read(group[0], statistic), task, per_token)
                unseen[task] = readers[task].max_unseen_share(group[0], statistic)
            yield FeatureSetLayer(group, moments, unseen, readers)

    def _second_moment(self, tensor: torch.Tensor, task: str, per_token: bool) -> SecondMoment:
        kind = self.statistics[task].partition(":")[0]
        if kind == SECOND_MOMENT:
            return SecondMoment(tensor, factored=False)
        rows = tensor.reshape(-1, tensor.shape[-1])
        if not per_token:
            return SecondMoment(rows, factored=True)
        # A sketch stands for the sum over all tokens, the others are means as they are.
        count = self.files[task].tokens if kind == "sketch" else len(rows)
        return SecondMoment(rows / max(count, 1) ** 0.5, factored=True)


def _check_features_compatible(files: Sequence[FeaturesFile]) -> None:
    """Check that features files come from one base model and describe the same layers in the same way.

    Raises:
        OsrmError: Naming the file that differs, and how.
    """
    check_base_provenance({file.path: file.base for file in files})
    for name, describe in (
        ("revision", _features_base_revision),
        ("layers", _feature_layer_widths),
        ("pooling", _features_pooling),
    ):
        values = [describe(file) for file in files]
        known = [value for value in values if value is not None]
        usual = max(known, key=known.count, default=None)
        for file, value in zip(files, values, strict=True):
            if value not in (None, usual):
                difference = _describe_features_difference(value, usual)
                raise OsrmError(
                    f"{file.path} differs from the other features files in its {name}: {difference}",
                    f"collect '{file.task}' again with the options of the others",
                )


def _features_base_revision(file: FeaturesFile) -> str | None:
    return file.base.revision  # None for a local copy of the same weights


def _feature_layer_widths(file: FeaturesFile) -> Any:
    return {name: (layer.d_in, layer.d_out) for name, layer in file.layers.items()}


def _features_pooling(file: FeaturesFile) -> Any:
    return (file.record.get("settings") or {}).get("pooling")


def _describe_features_difference(value: Any, usual: Any) -> str:
    if not isinstance(value, dict):
        return f"{value}, expected {usual}"
    layer = next(name for name in sorted(value.keys() | usual.keys()) if value.get(name) != usual.get(name))
    return f"{layer} is {value.get(layer, 'absent')}, expected {usual.get(layer, 'absent')} (d_in, d_out)"
