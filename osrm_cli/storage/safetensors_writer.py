"""Write safetensors files tensor by tensor; neither all tensors nor their sizes need to be known at first.

The format is a header's length in 8 bytes, the header as JSON, then the tensors' bytes. The header may end in spaces:
space for it is reserved at the beginning, and it is written last.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file

from osrm_cli.storage.input_files import DIGEST_KEY, open_safetensors, read_safetensors_metadata

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


class SafetensorsStream:
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
def write_safetensors(
    path: Path, names: Sequence[str], metadata: Mapping[str, str] | None = None
) -> Iterator[SafetensorsStream]:
    """Open a safetensors file for the tensors ``names``, which may be added in any order.

    Args:
        path: The file.
        names: Every tensor.
        metadata: Texts for the header beside ``format``.
    """
    with path.open("wb") as file:
        stream = SafetensorsStream(file, names, {"format": "pt", **dict(sorted((metadata or {}).items()))})
        yield stream
        stream.finish()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors with a record and their digest; call it on a staging path of ``atomic``."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # One key only: safetensors writes several in an order of its own, and equal contents are to give equal bytes.
    save_file(ordered, path, metadata=_safetensors_metadata(record, _safetensors_digest(ordered.items())))


class RecordedSafetensorsStream:
    """A safetensors file being written tensor by tensor, with the record and the digest of ``save_tensors``.

    Attributes:
        record: Has to be set before the end.
    """

    def __init__(self, stream: SafetensorsStream) -> None:
        self.record: Mapping[str, Any] = {}
        self._stream = stream
        self._digests: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor."""
        whole = tensor.detach().cpu().contiguous()
        self._digests[name] = _safetensors_entry_digest(whole)
        self._stream.add(name, whole)

    def finish(self) -> None:
        """Hand the record over."""
        self._stream.metadata = _safetensors_metadata(self.record, _join_tensor_digests(self._digests))


@contextmanager
def write_recorded_safetensors(
    path: Path, names: Sequence[str], longest: Mapping[str, Any]
) -> Iterator[RecordedSafetensorsStream]:
    """Open a safetensors file for the tensors ``names``, whose record is complete when they are.

    Args:
        path: The file, a staging path of ``atomic``.
        names: Every tensor.
        longest: A record for whose length room is kept: the record in the end may not be longer.
    """
    with write_safetensors(path, names, _safetensors_metadata(longest, "0" * 64)) as stream:
        recorded = RecordedSafetensorsStream(stream)
        yield recorded
        recorded.finish()


def _safetensors_metadata(record: Mapping[str, Any], digest: str) -> dict[str, str]:
    return {"osrm": json.dumps({**record, DIGEST_KEY: digest}, sort_keys=True, allow_nan=False)}


def _safetensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    return _join_tensor_digests({name: _safetensors_entry_digest(tensor) for name, tensor in tensors})


def _join_tensor_digests(digests: Mapping[str, str]) -> str:
    """The digest of all tensors, whatever the order in which they were written."""
    return hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _safetensors_entry_digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{DTYPES[tensor.dtype]}\0{list(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_safetensors_digest(path: Path) -> bool | None:
    """Whether the tensors are those that were written with a record; ``None`` for a file of another writer.

    Raises:
        OsrmError: If the file is missing or damaged.
    """
    with open_safetensors(path) as file:
        recorded = read_safetensors_metadata(path, file).get(DIGEST_KEY)
        if recorded is None:
            return None
        return bool(recorded == _safetensors_digest((name, file.get_tensor(name)) for name in sorted(file.keys())))


def entry_bits(dtype: str) -> int:
    """Bits of one entry of a tensor, from the name of its type in safetensors."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
