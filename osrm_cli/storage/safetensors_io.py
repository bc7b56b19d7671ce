"""Write safetensors files tensor by tensor: neither all tensors nor their sizes need to be known at the start.

The format is a header's length in 8 bytes, the header as JSON, then the tensors' bytes. The header may end in spaces:
room for it is left at the beginning, and it is written last.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

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
_ENTRY = 192  # bytes that one tensor's dtype, shape and offsets take in the header, at most
_START = 8


class Stream:
    """A safetensors file being written.

    Attributes:
        size: Bytes of tensors so far.
    """

    def __init__(self, file: IO[bytes], names: Sequence[str], metadata: dict[str, str]) -> None:
        room = sum(len(json.dumps(name)) + _ENTRY for name in names) + len(json.dumps(metadata)) + _ENTRY
        self._file = file
        self._room = room + -room % 8  # tensors start at a multiple of 8
        self._expected = set(names)
        self._header: dict[str, Any] = {"__metadata__": metadata}
        self.size = 0
        file.seek(_START + self._room)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self.add_bytes(name, DTYPES[tensor.dtype], tuple(tensor.shape), [flat.view(torch.uint8).numpy().data])

    def add_bytes(self, name: str, dtype: str, shape: Sequence[int], chunks: Iterable[bytes | memoryview]) -> None:
        """Append one tensor that is given as raw little-endian bytes.

        Raises:
            ValueError: If the name was not announced, or came before.
        """
        if name not in self._expected:
            raise ValueError(f"tensor {name} was not announced, or came twice")
        self._expected.remove(name)
        start = self.size
        for chunk in chunks:
            self._file.write(chunk)
            self.size += len(chunk)
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self.size]}

    def finish(self) -> None:
        """Write the header into the room left for it.

        Raises:
            ValueError: If an announced tensor did not come.
        """
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if self._expected or len(header) > self._room:
            raise ValueError(f"tensors missing: {sorted(self._expected)}, header {len(header)} of {self._room} bytes")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(_START, "little") + header.ljust(self._room))


@contextmanager
def write_stream(path: Path, names: Sequence[str]) -> Iterator[Stream]:
    """Open a safetensors file for the tensors ``names``, which may be added in any order."""
    with path.open("wb") as file:
        stream = Stream(file, names, {"format": "pt"})
        yield stream
        stream.finish()
