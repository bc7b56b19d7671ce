"""LoRA adapters on disk: PEFT's folder plus our ``osrm.json``, or files of other programs.

Opening one reads its settings and the headers of its weights; a layer's factors are read on request.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from osrm_cli.adapters.config import CONFIG_NAME, TEXT_TASK_TYPES, AdapterConfig
from osrm_cli.adapters.layers import (
    FACTORS,
    PREFIX,
    ROWS,
    AdapterLayer,
    is_base_module,
    layer_name_sort_key,
    tensor_kind,
)
from osrm_cli.adapters.names import align_layer_names
from osrm_cli.adapters.trained_rows import BASE_COPY, TrainedRows, find_trained_rows
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import Update
from osrm_cli.storage import hub, input_files
from osrm_cli.storage.input_files import TensorLocation
from osrm_cli.storage.provenance import check_base_provenance, short_model_name
from osrm_cli.storage.records import BaseModelId, Record
from osrm_cli.tasks.task import GENERATION, TASK_NAME


@dataclass(frozen=True)
class Adapter:
    """An adapter: its settings are in memory, its tensors are read on request.

    Attributes:
        name: ``alias``, else the task's name if ``osrm.json`` has one, else the folder's.
        source: The folder or hub id, as the user gave it.
        folder: The local folder; of a format whose adapters are one file, that file.
        format: Name of its format, see ``formats.table``.
        config: The settings, in PEFT's terms.
        record: Contents of ``osrm.json``; empty for adapters of other programs.
        layers: Adapted layers by their full name in the base model, ``layer.2`` before ``layer.10``.
        tensors: Location of each tensor.
        dtype: Type of the stored factors; the widest one if they differ.
        base: The base model with its digest, where this program recorded it.
        data_source: The data that it was trained on, as ``--data`` names it, if this program recorded it.
        max_length: Maximum tokens per example in training, if this program recorded it.
        alias: The name that the user gave it, if so.
        warnings: What a merge cannot take of it.
    """

    name: str
    source: str
    folder: Path
    format: str
    config: AdapterConfig
    record: Record
    layers: Mapping[str, AdapterLayer]
    tensors: Mapping[str, TensorLocation]
    dtype: torch.dtype
    base: BaseModelId | None
    data_source: str | None
    max_length: int | None
    alias: str | None = None
    warnings: tuple[str, ...] = ()
    _open: dict[Path, input_files.SafetensorsFile] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_dense(self) -> bool:
        """Whether updates are dense, without factors."""
        return False

    @property
    def is_text(self) -> bool:
        """Whether its task is answered with text, as far as the adapter says."""
        recorded = self.record.get("task") or {}
        return recorded.get("kind") == GENERATION or self.config.task_type in TEXT_TASK_TYPES

    @property
    def commit(self) -> str | None:
        """The commit of the hub that it was fetched from; ``None`` for a folder."""
        return hub.snapshot_commit(self.folder)

    @property
    def pinned_source(self) -> str:
        """``source`` with the commit, if it is a hub id, and with the user's name."""
        pinned = hub.pin_revision(self.source, self.folder)
        return f"{self.alias}={pinned}" if self.alias else pinned

    def lora_factors(
        self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> LowRank:
        """A layer's ``lora_B`` and ``lora_A`` as they are stored, without the scaling; a convolution's as matrices.

        Raises:
            OsrmError: If they contain NaN or infinity.
        """
        name_a, name_b = (PREFIX + layer + suffix for suffix in FACTORS[self.layers[layer].embedding])
        A, B = (self._read_checked(name).flatten(1).to(device, dtype) for name in (name_a, name_b))
        return LowRank(B, A)

    def delta(self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> LowRank:
        """A layer's update ``s B A``, the scaling folded into ``B``.

        Raises:
            OsrmError: If the factors contain NaN or infinity.
        """
        factors = self.lora_factors(layer, dtype, device)
        return LowRank(factors.B * self.layers[layer].scaling, factors.A)

    def update(self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Update:
        """A layer's update as merging methods take it: ``delta``.

        Raises:
            OsrmError: If the factors contain NaN or infinity.
        """
        return self.delta(layer, dtype, device)

    def head_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the task's head by their name in the classifier, as they are stored.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        return self._read_saved(of_base=False)

    def module_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of base-model modules that were trained as a whole, such as embeddings, by their name there.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        return self._read_saved(of_base=True)

    def trained_rows(self) -> dict[str, TrainedRows]:
        """Rows that take the place of the base model's, by the name of their module there.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        rows = find_trained_rows(self.folder, self.config, self.tensors)
        return {name: TrainedRows(own, self._read_checked(PREFIX + name + ROWS)) for name, own in rows.items()}

    def tensors_beside_factors(self) -> dict[str, torch.Tensor]:
        """What PEFT stores beside the factors: heads, modules, trained rows, copies of the base's embeddings.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        names = [name for name in self.tensors if tensor_kind(name) == "other" or name.endswith(".base_layer.weight")]
        return {name.removeprefix(PREFIX): self._read_checked(name) for name in sorted(names)}

    def base_copies(self) -> dict[str, torch.Tensor]:
        """Copies of the base model's weights below adapted embeddings and trained rows, which hold added rows too.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        names = {f"{PREFIX}{layer}.base_layer.weight": f"{layer}.weight" for layer in self.layers}
        names |= {PREFIX + module + BASE_COPY: f"{module}.weight" for module in self.trained_rows()}
        return {name: self._read_checked(stored) for stored, name in names.items() if stored in self.tensors}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by the name that PEFT gives it.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        return {name: self._read_checked(name) for name in self.tensors}

    def sha256(self) -> str:
        """Digest of the settings and the weights; other files of the folder do not count. Of one file, its own."""
        if self.folder.is_file():
            return input_files.sha256(self.folder)
        settings = [path] if (path := self.folder / CONFIG_NAME).is_file() else []
        weights = sorted({location.path for location in self.tensors.values()})
        return input_files.joint_digest({path.name: path for path in (*settings, *weights)})

    def describe(self) -> dict[str, Any]:
        """The adapter's entry in files of scores: path, digest, origin, and drift of A."""
        location = {"path": self.source, "sha256": self.sha256()}
        return {**location, **self.origin(), "drift": self.drift}

    @property
    def dev_scores(self) -> Record | None:
        """Examples, digest of the data and scores by metric; ``None`` where training has not recorded them."""
        dev = self._training_log.get("dev")
        scores = dev.get("scores") if isinstance(dev, dict) else None
        return dev if isinstance(scores, dict) and all(isinstance(x, int | float) for x in scores.values()) else None

    @property
    def drift(self) -> float | None:
        """How far A moved in training, see ``linalg.subspaces``; ``None`` where training has not recorded it."""
        drift = self._training_log.get("drift")
        overall = drift.get("overall") if isinstance(drift, dict) else None
        return float(overall) if isinstance(overall, int | float) else None

    def origin(self) -> dict[str, Any]:
        """Settings of the initialization, of the training, and of the retrofit if there was one.

        What this program has not recorded is ``None``.
        """
        own = {self.record.get("command"): self.record.get("settings")}
        origin = {"start": self.record.get("start"), "train": own.get("train", self.record.get("train"))}
        return {**origin, "retrofit": own["retrofit"]} if "retrofit" in own else origin

    def with_layer_names(self, names: Mapping[str, str]) -> Self:
        """The same adapter with other names for its layers.

        Args:
            names: The new name by the old.
        """
        tensors = {}
        for name, location in self.tensors.items():
            layer, dot, suffix = name.removeprefix(PREFIX).partition(
                ".base_layer." if ".base_layer." in name else ".lora_"
            )
            tensors[f"{PREFIX}{names[layer]}{dot}{suffix}" if dot and layer in names else name] = location
        layers = {names[name]: layer for name, layer in self.layers.items()}
        return replace(self, layers=layers, tensors=tensors)

    @cached_property
    def _training_log(self) -> Mapping[str, Any]:
        """What ``train`` noted beside the adapter; empty where it cannot be read."""
        try:
            log = input_files.read_json(self.folder / "training.json", "", finite=True)
        except OsrmError:
            return {}
        return log if isinstance(log, dict) else {}

    def _read_saved(self, of_base: bool) -> dict[str, torch.Tensor]:
        """Tensors of ``modules_to_save``: those of the base model's modules, or those of the head."""
        names = sorted(name for name in self.tensors if tensor_kind(name) == "other" and not name.endswith(ROWS))
        saved = {name.removeprefix(PREFIX): name for name in names}
        return {
            name: self._read_checked(stored)
            for name, stored in saved.items()
            if is_base_module(self.config, name) == of_base
        }

    def _read_checked(self, name: str) -> torch.Tensor:
        place = self.tensors[name]
        path = place.path
        tensor = self._open.setdefault(path, input_files.SafetensorsFile(path)).get_tensor(place.name)
        if place.part or place.transposed:
            part = tensor[place.part]
            tensor = (part.T if place.transposed else part).contiguous()
        if not tensor.is_floating_point():
            raise OsrmError(f"{path}: {name} holds no floating-point numbers", "save the adapter again")
        if not input_files.all_finite(tensor):
            raise OsrmError(f"{path}: NaN or infinity in {name}", "its training diverged: train the adapter again")
        return tensor


def align_adapter_layers(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters with one name for each layer, whatever model they were trained on: bare, with a head, or compiled.

    Raises:
        OsrmError: If the names of one fit several places.
    """
    try:
        names = align_layer_names([adapter.layers for adapter in adapters])
    except ValueError as error:
        raise OsrmError(
            f"the layers of {', '.join(adapter.source for adapter in adapters)} do not fit together: {error}",
            "use adapters that were trained on one class of model",
        ) from None
    return [adapter.with_layer_names(new) for adapter, new in zip(adapters, names, strict=True)]


def check_adapters_share_base(adapters: Sequence[Adapter]) -> None:
    """Check that adapters belong to one base model.

    Digests decide where this program recorded them. Otherwise the names must agree, at least in their last part, since
    one model may be in different folders on different machines; then the revisions; then the layers' widths.

    Raises:
        OsrmError: Naming two adapters that do not fit, and how.
    """
    base_models = {adapter.folder: adapter.base for adapter in adapters}
    check_base_provenance({folder: base for folder, base in base_models.items() if base is not None})
    for first, second in itertools.combinations(adapters, 2):
        if not (first.base and second.base):
            _check_adapter_config_bases(first, second)
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        for name, layer in adapter.layers.items():
            owner = owners.setdefault(name, adapter)
            theirs = owner.layers[name]
            if (layer.d_out, layer.d_in) != (theirs.d_out, theirs.d_in):
                raise OsrmError(
                    f"{name} is ({layer.d_out}, {layer.d_in}) in {adapter.source}, "
                    f"but ({theirs.d_out}, {theirs.d_in}) in {owner.source}",
                    "use adapters of one base model only",
                )


def combine_adapter_layers(adapters: Sequence[Adapter]) -> dict[str, AdapterLayer]:
    """Every layer that an adapter changes, ``layer.2`` before ``layer.10``, as the first adapter describes it."""
    layers = {name: layer for adapter in reversed(adapters) for name, layer in adapter.layers.items()}
    return {name: layers[name] for name in sorted(layers, key=layer_name_sort_key)}


def _check_adapter_config_bases(first: Adapter, second: Adapter) -> None:
    hint = (
        "if they are the same, correct base_model_name_or_path in adapter_config.json; if not, merge them into one of "
        "the two by --method distill --base MODEL"
    )
    ours, theirs = first.config.base_model, second.config.base_model
    if ours and theirs and short_model_name(ours) != short_model_name(theirs):
        raise OsrmError(f"{first.source} belongs to base model {ours}, but {second.source} to {theirs}", hint)
    ours, theirs = first.config.revision, second.config.revision
    if ours and theirs and ours != theirs:
        raise OsrmError(f"{first.source} belongs to revision {ours}, but {second.source} to {theirs}", hint)


def check_adapter_names(adapters: Sequence[Adapter]) -> None:
    """Check that adapters have different names, and names that folders can have.

    Raises:
        OsrmError: If not.
    """
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        if not TASK_NAME.fullmatch(adapter.name):
            raise OsrmError(
                f"{adapter.source}: '{adapter.name}' cannot be a folder's name",
                f"give it a name: NAME={adapter.source}",
            )
        other = owners.setdefault(adapter.name, adapter)
        if other is not adapter:
            raise OsrmError(
                f"{other.source} and {adapter.source} are both adapters of '{adapter.name}'",
                f"give one adapter per task, or a name: NAME={other.source}",
            )
