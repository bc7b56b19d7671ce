"""Safetensors files of a base model: find a layer's weight, and copy the files with some weights changed.

Memory holds a few rows of a weight at a time; tensors that do not change are copied as bytes.
"""

import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.layers import layer_matrix_shape
from osrm_cli.errors import OsrmError
from osrm_cli.models.architecture import Architecture
from osrm_cli.storage import atomic
from osrm_cli.storage.input_files import (
    CHUNK_BYTES,
    TensorLocation,
    find_safetensors_bytes,
    list_indexed_safetensors,
    list_safetensors_headers,
    read_json,
    read_safetensors_bytes,
    read_safetensors_tensor,
)
from osrm_cli.storage.provenance import CARD_NAME
from osrm_cli.storage.safetensors_writer import DTYPES, TYPES, SafetensorsStream, entry_bits, write_safetensors

INDEX_NAME = "model.safetensors.index.json"
# Weights, of whatever program: the changed ones are written, and the others are not those of the result.
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".gguf"),
    *(".index.json", ".tflite", ".mlmodel", ".npz"),
)


@dataclass(frozen=True)
class CheckpointRows:
    """A tensor as a matrix, of which rows are read where they are wanted, by any thread.

    Attributes:
        shape: Its shape as a matrix, see ``layer_matrix_shape``.
        dtype: Its type.
        read: Reads some rows.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    read: Callable[[slice], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "CheckpointRows":
        """Rows of a tensor in memory."""
        matrix = tensor.reshape(layer_matrix_shape(tensor.shape))
        return cls((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.__getitem__)

    @classmethod
    def stored(cls, location: TensorLocation, shape: tuple[int, int] | None = None) -> "CheckpointRows":
        """Rows of a tensor of a file.

        Args:
            location: The tensor.
            shape: Its shape as a matrix, where that is another.
        """
        dtype, path = TYPES[location.dtype], location.path
        start, end = find_safetensors_bytes(path, location.name)
        rows, columns = shape or layer_matrix_shape(location.shape)
        width = columns * dtype.itemsize
        count = min(rows, (end - start) // max(width, 1))  # a grown tensor has more

        def read(place: slice) -> torch.Tensor:
            first, last, _ = place.indices(count)
            data = bytearray((last - first) * width)
            if not data:
                return torch.empty(last - first, columns, dtype=dtype)
            with path.open("rb") as file:
                file.seek(start + first * width)
                file.readinto(data)
            return torch.frombuffer(data, dtype=dtype).view(last - first, columns)

        return cls((count, columns), dtype, read)

    def pieces(self) -> Iterator[torch.Tensor]:
        """All rows, some at a time."""
        size = max(CHUNK_BYTES // max(self.shape[1] * self.dtype.itemsize, 1), 1)
        return (self.read(slice(first, first + size)) for first in range(0, self.shape[0], size))


# Makes a tensor of the rows of an old one, in pieces.
Change = Callable[[CheckpointRows], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """The files of a base model.

    Attributes:
        folder: The base model's folder.
        tensors: Location of each tensor, file by file.
        settings: Keys of ``config.json`` that are written with other values.
    """

    folder: Path
    tensors: Mapping[str, TensorLocation]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read the headers.

        Raises:
            OsrmError: If there are no safetensors files, or one is damaged.
        """
        index = folder / INDEX_NAME
        tensors = (
            list_indexed_safetensors(index)
            if index.is_file()
            else list_safetensors_headers([folder / "model.safetensors"])
        )
        return cls(folder, tensors)

    @cached_property
    def architecture(self) -> Architecture:
        """What transformers makes of the files."""
        return Architecture.read(self.folder)

    def find_names(self, name: str) -> list[str]:
        """The tensors that a tensor of the model may be stored as; one, unless the files are of another model.

        A classifier's ``bert.encoder.x`` may be ``encoder.x`` in the checkpoint of the bare model, and the other way
        round. The files of vision-language models have names of earlier versions of transformers.

        Args:
            name: Its name in the model, in this or an earlier version of transformers.
        """
        for each in (name, name.partition(".")[2]):
            if each in self.tensors:
                return [each]
        return self._names_below.get(name) or self._names_in_model.get(self.architecture.name_in_model(name), [])

    @cached_property
    def _names_below(self) -> dict[str, list[str]]:
        """Names of tensors by what follows the first part."""
        return _group_checkpoint_names(self.tensors, lambda name: name.partition(".")[2])

    @cached_property
    def _names_in_model(self) -> dict[str, list[str]]:
        """Names of tensors by those in the model."""
        return _group_checkpoint_names(self.tensors, self.architecture.name_in_model)

    def untied(self, copies: Mapping[str, str]) -> "Checkpoint":
        """The model with further tensors, which begin as others that they were tied to.

        Args:
            copies: By name in the model, the tensor in the files.
        """
        further = {name: self.tensors[original] for name, original in copies.items()}
        settings = {**self.settings, "tie_word_embeddings": False}
        return replace(self, tensors={**self.tensors, **further}, settings=settings)

    def with_vocabulary(self, size: int, names: Collection[str]) -> "Checkpoint":
        """The model with another number of tokens.

        Args:
            size: So many.
            names: The tensors with a row for each; ``write`` has to change them into such.
        """
        grown = {name: replace(self.tensors[name], shape=(size, *self.tensors[name].shape[1:])) for name in names}
        return replace(self, tensors={**self.tensors, **grown}, settings={**self.settings, "vocab_size": size})

    def find_weight(self, layer: str, shape: tuple[int, ...], transposed: bool) -> tuple[str, bool]:
        """The name of a layer's weight, and whether the weight is stored as ``(d_in, d_out)``.

        Args:
            layer: Full name of the layer in the model that was adapted.
            shape: Shape of the weight: ``(d_out, d_in)``, or that of a convolution.
            transposed: Whether a square weight is stored as ``(d_in, d_out)``.

        Raises:
            OsrmError: If there is no such weight, more than one, or it has another shape or is quantized.
        """
        names = self.find_names(f"{layer}.weight")
        if len(names) != 1:
            match_count = "several" if names else "none"
            raise OsrmError(
                f"{self.folder}: {match_count} of its tensors match layer {layer}", "give the right base with --model"
            )
        stored_shape = self.tensors[names[0]].shape
        if stored_shape not in (shape, shape[::-1]):
            raise OsrmError(
                f"{self.folder}: {names[0]} is {stored_shape}, expected {shape}", "give the right base with --model"
            )
        kind = TYPES.get(self.tensors[names[0]].dtype)
        if kind is None or not kind.is_floating_point:
            raise OsrmError(
                f"{self.folder}: {names[0]} is quantized ({self.tensors[names[0]].dtype})",
                "give the base model in floating point with --model, or leave out --as model",
            )
        return names[0], transposed if shape[0] == shape[1] else stored_shape != shape

    def read_weight(self, layer: str, shape: tuple[int, ...], transposed: bool) -> torch.Tensor:
        """A layer's weight, ``(d_out, d_in)`` or that of a convolution; see ``find_weight``.

        Raises:
            OsrmError: As ``find_weight``, or if the weight contains NaN or infinity.
        """
        name, is_transposed = self.find_weight(layer, shape, transposed)
        weight = read_safetensors_tensor(self.tensors[name])
        return weight.T if is_transposed else weight

    def tensor_order(self, dtype: torch.dtype | None = None) -> list[str]:
        """All tensors in the order in which ``write`` writes them: file by file, wide types first.

        That way each tensor starts at a multiple of its own width.
        """
        files = list(dict.fromkeys(location.path for location in self.tensors.values()))

        def key(name: str) -> tuple[int, int, str]:
            kind = self._target_dtype(name, dtype)
            return (
                files.index(self.tensors[name].path),
                -entry_bits(DTYPES[kind] if kind else self.tensors[name].dtype),
                name,
            )

        return sorted(self.tensors, key=key)

    def write(
        self,
        folder: Path,
        changes: Mapping[str, Change],
        dtype: torch.dtype | None = None,
        finished: Path | None = None,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the model, tensor by tensor.

        Args:
            folder: An existing, empty folder that is being staged.
            changes: Functions of the weights that change, called in the order of ``tensor_order``.
            dtype: Type of the floating-point tensors; ``None`` keeps each tensor's own.
            finished: Folder on the same disk that keeps every file that is whole, and holds those of an earlier call.
            finish: Called before a file counts as whole.
        """
        with ThreadPoolExecutor(1) as beside:
            for path, names in itertools.groupby(self.tensor_order(dtype), key=lambda name: self.tensors[name].path):
                whole = (finished or folder) / path.name
                if not whole.exists():
                    batch, part = list(names), folder / f"{path.name}.part"
                    with write_safetensors(part, batch) as out:
                        for name in batch:
                            self._copy_tensor(out, name, changes.get(name), self._target_dtype(name, dtype))
                    if finished:  # whole also after a power failure
                        atomic.sync_file(part)
                    finish()
                    part.rename(whole)
                    if not finished:  # the disk does it while the next file is made
                        beside.submit(atomic.sync_file, whole)
                if finished:
                    (folder / path.name).hardlink_to(whole)
        if (self.folder / INDEX_NAME).is_file():
            weight_map = {name: location.path.name for name, location in sorted(self.tensors.items())}
            index = {"metadata": {"total_size": self.count_bytes(dtype)}, "weight_map": weight_map}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        atomic.copy_files_to_stage(self.folder, folder, _is_beside_checkpoint_weights)
        if dtype is not None or self.settings:
            _write_checkpoint_config(folder / "config.json", dtype, self.settings)

    def count_bytes(self, dtype: torch.dtype | None = None, without: Collection[str] = ()) -> int:
        """Bytes of the tensors that ``write`` writes.

        Args:
            dtype: Type of the floating-point tensors; ``None`` keeps each tensor's own.
            without: Names of files that are finished.
        """
        total = 0
        for name, location in self.tensors.items():
            if location.path.name not in without:
                kind = self._target_dtype(name, dtype)
                total += math.prod(location.shape) * entry_bits(DTYPES[kind] if kind else location.dtype) // 8
        return total

    def _target_dtype(self, name: str, dtype: torch.dtype | None) -> torch.dtype | None:
        """The type that a tensor is written in; ``None`` if torch may not know it: the tensor is copied unchanged."""
        kind = TYPES.get(self.tensors[name].dtype)
        return dtype if dtype is not None and kind is not None and kind.is_floating_point else kind

    def _copy_tensor(
        self,
        out: SafetensorsStream,
        name: str,
        change: Change | None,
        target: torch.dtype | None,
    ) -> None:
        location = self.tensors[name]
        if target is None or not target.is_floating_point:
            out.add_bytes(name, location.dtype, location.shape, read_safetensors_bytes(location.path, location.name))
            return
        rows = CheckpointRows.stored(location)
        pieces = change(rows) if change else rows.pieces()
        flat = (
            piece.contiguous().reshape(-1).view(torch.uint8)
            for piece in _check_checkpoint_pieces(pieces, target, name, location)
        )
        out.add_bytes(name, DTYPES[target], location.shape, (piece.numpy().data for piece in flat))


def _group_checkpoint_names(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _is_beside_checkpoint_weights(name: Path) -> bool:
    """Whether a file lies beside the weights: settings, tokenizer, templates, code, licence, further modules."""
    return name.as_posix() != CARD_NAME and not name.name.endswith(_WEIGHTS)


def _write_checkpoint_config(path: Path, dtype: torch.dtype | None, settings: Mapping[str, Any]) -> None:
    """Let ``config.json`` say the type of the weights, in which transformers then loads them, and what has changed."""
    config = read_json(path, "give the right base model with --model")
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        if dtype is not None and (part is config or part.keys() & {"dtype", "torch_dtype"}):
            part.pop("torch_dtype", None)
            part["dtype"] = str(dtype).removeprefix("torch.")
        part.update({key: value for key, value in settings.items() if part is config or key in part})
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_checkpoint_pieces(
    pieces: Iterable[torch.Tensor], target: torch.dtype, name: str, location: TensorLocation
) -> Iterator[torch.Tensor]:
    """The pieces of a tensor in the type that is written; infinity of a base model is handed on: masks hold it."""
    for piece in pieces:
        written = piece.to(target)
        if written.numel() and any(math.isnan(extreme) for extreme in written.aminmax()):
            raise OsrmError(
                f"NaN in {name}: a weight of {location.path} or of the updates is damaged or too large",
                "osrm verify names files that have changed",
            )
        yield written
