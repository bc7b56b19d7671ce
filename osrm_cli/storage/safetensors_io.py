"""Read and write safetensors files tensor by tensor; neither all tensors nor their sizes need to be known at first.

The format is a header's length in 8 bytes, the header as JSON, then the tensors' bytes. The header may end in spaces:
space for it is reserved at the beginning, and it is written last.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from osrm_cli.errors import OsrmError
from osrm_cli.storage.regular_file import check_regular, finite_number, read_json

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {label: kind for kind, label in DTYPES.items()}
_MAX_ENTRY_BYTES = 192  # bytes that one tensor's dtype, shape and offsets take in the header, at most
_LENGTH_BYTES = 8
_DIGEST_KEY = "tensors"  # of the header, beside the record


class TensorStream:
    """A safetensors file being written.

    Attributes:
        size: Bytes of tensors so far.
        metadata: Texts for the header; no longer in the end than at the beginning.
    """

    def __init__(self, file: IO[bytes], names: Sequence[str], metadata: dict[str, str]) -> None:
        size = (
            sum(len(json.dumps(name)) + _MAX_ENTRY_BYTES for name in names)
            + len(json.dumps(metadata))
            + _MAX_ENTRY_BYTES
        )
        self._file = file
        self._header_size = size + -size % 8  # tensors start at a multiple of 8
        self._expected = set(names)
        self._header: dict[str, Any] = {}
        self.metadata = metadata
        self.size = 0
        file.seek(_LENGTH_BYTES + self._header_size)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self.add_bytes(name, DTYPES[tensor.dtype], tuple(tensor.shape), [flat.view(torch.uint8).numpy().data])

    def add_bytes(self, name: str, dtype: str, shape: Sequence[int], chunks: Iterable[bytes | memoryview]) -> None:
        """Append one tensor from raw little-endian bytes.

        Raises:
            ValueError: If the name was not announced, or was added before.
        """
        if name not in self._expected:
            raise ValueError(f"tensor {name} was not announced, or was added twice")
        self._expected.remove(name)
        start = self.size
        for chunk in chunks:
            self._file.write(chunk)
            self.size += len(chunk)
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self.size]}

    def finish(self) -> None:
        """Write the header into the space reserved for it.

        Raises:
            ValueError: If an announced tensor was not added.
        """
        header = json.dumps({"__metadata__": self.metadata, **self._header}, separators=(",", ":")).encode()
        if self._expected or len(header) > self._header_size:
            raise ValueError(
                f"tensors missing: {sorted(self._expected)}, header {len(header)} of {self._header_size} bytes"
            )
        self._file.seek(0)
        self._file.write(self._header_size.to_bytes(_LENGTH_BYTES, "little") + header.ljust(self._header_size))


@contextmanager
def write_stream(path: Path, names: Sequence[str], metadata: Mapping[str, str] | None = None) -> Iterator[TensorStream]:
    """Open a safetensors file for the tensors ``names``, which may be added in any order.

    Args:
        path: The file.
        names: Every tensor.
        metadata: Texts for the header beside ``format``.
    """
    with path.open("wb") as file:
        stream = TensorStream(file, names, {"format": "pt", **dict(sorted((metadata or {}).items()))})
        yield stream
        stream.finish()


REOPEN_AFTER_BYTES = 2 << 20  # bytes read from a file before it is reopened


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors with a record and their digest; call it on a staging path of ``atomic``."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # One key only: safetensors writes several in an order of its own, and equal contents are to give equal bytes.
    save_file(ordered, path, metadata=_metadata_of(record, _digest(ordered.items())))


class RecordStream:
    """A safetensors file being written tensor by tensor, with the record and the digest of ``save_tensors``.

    Attributes:
        record: Has to be set before the end.
    """

    def __init__(self, stream: TensorStream) -> None:
        self.record: Mapping[str, Any] = {}
        self._stream = stream
        self._digests: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor."""
        whole = tensor.detach().cpu().contiguous()
        self._digests[name] = _tensor_digest(whole)
        self._stream.add(name, whole)

    def finish(self) -> None:
        """Hand the record over."""
        self._stream.metadata = _metadata_of(self.record, _joint_digest(self._digests))


@contextmanager
def write_record_stream(path: Path, names: Sequence[str], longest: Mapping[str, Any]) -> Iterator[RecordStream]:
    """Open a safetensors file for the tensors ``names``, whose record is complete when they are.

    Args:
        path: The file, a staging path of ``atomic``.
        names: Every tensor.
        longest: A record for whose length room is kept: the record in the end may not be longer.
    """
    with write_stream(path, names, _metadata_of(longest, "0" * 64)) as stream:
        recorded = RecordStream(stream)
        yield recorded
        recorded.finish()


def _metadata_of(record: Mapping[str, Any], digest: str) -> dict[str, str]:
    return {"osrm": json.dumps({**record, _DIGEST_KEY: digest}, sort_keys=True, allow_nan=False)}


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    return _joint_digest({name: _tensor_digest(tensor) for name, tensor in tensors})


def _joint_digest(digests: Mapping[str, str]) -> str:
    """The digest of all tensors, whatever the order in which they were written."""
    return hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{DTYPES[tensor.dtype]}\0{list(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_digest(path: Path) -> bool | None:
    """Whether the tensors are those that were written with a record; ``None`` for a file of another writer.

    Raises:
        OsrmError: If the file is missing or damaged.
    """
    with open_tensors(path) as file:
        recorded = _metadata(path, file).get(_DIGEST_KEY)
        if recorded is None:
            return None
        return bool(recorded == _digest((name, file.get_tensor(name)) for name in sorted(file.keys())))


def open_tensors(path: Path) -> Any:
    """Open a safetensors file for lazy reading: header and index now, each tensor on request.

    Raises:
        OsrmError: If the file is missing, empty, damaged, or not safetensors.
    """
    check_regular(path)
    if path.stat().st_size == 0:
        raise OsrmError(f"{path} is empty", "recreate it with the command that wrote it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise OsrmError(
            f"{path} is damaged or not a safetensors file: {error}", "recreate it with the command that wrote it"
        ) from None


class TensorFile:
    """A safetensors file whose tensors are read one by one.

    The library maps the file, and every page that was read stays in memory while the file is open: with many large
    files, all of them in the end. It is therefore reopened after every ``REOPEN_AFTER_BYTES`` bytes.

    Args:
        path: The file; it is opened at the first tensor.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._read = 0

    def get_tensor(self, name: str) -> torch.Tensor:
        """The tensor of that name.

        Raises:
            OsrmError: If the file cannot be read.
        """
        if self._file is None or self._read >= REOPEN_AFTER_BYTES:
            self._file, self._read = open_tensors(self._path), 0
        tensor: torch.Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


def read_header_record(path: Path) -> dict[str, Any]:
    """The record that was saved with the tensors; empty for a file of another tool."""
    with open_tensors(path) as file:
        return {key: value for key, value in _metadata(path, file).items() if key != _DIGEST_KEY}


def _metadata(path: Path, file: Any) -> dict[str, Any]:
    """The JSON object under the file's ``osrm`` key."""
    try:
        text = (file.metadata() or {}).get("osrm", "{}")
        return dict(json.loads(text, parse_constant=finite_number, parse_float=finite_number))
    except (ValueError, TypeError, RecursionError) as error:
        raise OsrmError(
            f"{path}: its metadata cannot be read: {error}", "recreate it with the command that wrote it"
        ) from None


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, from the extremes alone: a tenth of the time of looking at each."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in tensor.aminmax())


@dataclass(frozen=True)
class TensorLocation:
    """Location, shape and type of one tensor.

    Attributes:
        path: The safetensors file.
        shape: Its shape.
        dtype: Its type, as safetensors spells it.
        name: Its name in the file.
        part: What of the tensor is meant, as an index into it; ``shape`` is that of the part.
        transposed: Whether ``shape``, and the tensor that is meant, are the transpose of what the file holds.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    name: str
    part: tuple[slice, ...] = ()
    transposed: bool = False

    @property
    def T(self) -> "TensorLocation":  # noqa: N802 - as tensors have it
        """The transpose of a matrix."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)


def read_tensor(location: TensorLocation) -> torch.Tensor:
    """One tensor.

    Raises:
        OsrmError: If the file cannot be read, or the tensor contains NaN or infinity.
    """
    with open_tensors(location.path) as file:
        tensor: torch.Tensor = file.get_tensor(location.name)
    if tensor.is_floating_point() and not all_finite(tensor):
        raise OsrmError(f"{location.path}: NaN or infinity in {location.name}", "give weights that are whole")
    return tensor


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor's shape as that of a matrix: a vector is one row, and further dimensions are joined."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def read_index(path: Path) -> list[str]:
    """Names of the files that the index of a model or adapter in several files lists.

    Raises:
        OsrmError: If it cannot be read, or lists none.
    """
    remedy = "save the model again with save_pretrained"
    value = read_json(path, remedy)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name for name in names):
        raise OsrmError(f"{path} does not list the files of the weights", remedy)
    return sorted({Path(name).name for name in names})


def list_headers(paths: Iterable[Path]) -> dict[str, TensorLocation]:
    """Read the headers of safetensors files: every tensor in the order of the files and of the names.

    Raises:
        OsrmError: If a file is missing or damaged.
    """
    locations = {}
    for path in paths:
        with open_tensors(path) as file:
            for name in sorted(file.keys()):
                tensor_slice = file.get_slice(name)
                shape = tuple(tensor_slice.get_shape())
                locations[name] = TensorLocation(path, shape, tensor_slice.get_dtype(), name)
    return locations
