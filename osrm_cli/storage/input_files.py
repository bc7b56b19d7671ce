"""Files from anywhere, read with care: regular files only, since a pipe or a device could go on for ever.

JSON is read whole, safetensors tensor by tensor. Importing this module does not import torch.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    import torch

REOPEN_AFTER_BYTES = 2 << 20  # bytes read from a file before it is reopened
CHUNK_BYTES = 1 << 26  # bytes of a tensor read at a time
DIGEST_KEY = "tensors"  # of the header of safetensors, beside the record


def check_regular_file(path: Path) -> None:
    """Check that a path is a regular file, or a link to one.

    Raises:
        OsrmError: If it is missing, a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise OsrmError(f"{path} is missing") from None
    except OSError as error:  # a link that leads to itself, or no right to look
        raise OsrmError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise OsrmError(f"{path} is {_kind_of_file(mode)}, expected a file")


def check_input_folder(folder: Path, recursive: bool = False) -> None:
    """Check that a folder holds regular files and folders alone; hidden ones are not looked at.

    Args:
        folder: The folder.
        recursive: Look into its folders too, and refuse links to folders, which may lead back.

    Raises:
        OsrmError: Naming the first pipe, socket or device, or link to a folder.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                check_regular_file(Path(entry.path))
            elif recursive:
                if entry.is_symlink():
                    raise OsrmError(f"{entry.path} is a link to a folder, expected a folder", "copy the folder there")
                check_input_folder(Path(entry.path), recursive)


def read_bytes(path: Path) -> bytes:
    """The contents of a regular file.

    Raises:
        OsrmError: If it cannot be read.
    """
    check_regular_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise OsrmError(f"{path} cannot be read: {error.strerror}") from None


def sha256(path: Path) -> str:
    """Digest of a file, or of a folder's files taken in the order of their names (hidden ones left out).

    Raises:
        OsrmError: If it is missing, a pipe, a socket or a device.
    """
    if path.is_dir():
        names = [member.relative_to(path) for member in sorted(path.rglob("*")) if member.is_file()]
        shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        return joint_digest({name.as_posix(): path / name for name in shown})
    check_regular_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_DIGESTS: dict[tuple[Path, int, int], str] = {}  # by path, size and time of the last change


def file_digest(path: Path) -> str:
    """Like :func:`sha256` of a file, computed once in a process as long as its size and time stay.

    Raises:
        OsrmError: If it is missing, or no regular file.
    """
    check_regular_file(path)
    state = path, *file_state(path)
    if state not in _DIGESTS:
        _DIGESTS[state] = sha256(path)
    return _DIGESTS[state]


def file_digests(paths: Iterable[Path]) -> list[str]:
    """:func:`file_digest` of each, several at a time: hashing is slower than reading, and leaves Python to others."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(file_digest, paths))


def joint_digest(files: Mapping[str, Path]) -> str:
    """One digest of files and of the names that they go by, in this order.

    Raises:
        OsrmError: If one is missing, or no regular file.
    """
    lines = (f"{name}\0{digest}\n" for name, digest in zip(files, file_digests(files.values()), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes, and time of the last change in nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def trust_digest(path: Path, state: tuple[int, int], digest: str) -> None:
    """Take a digest for that of a file as long as the file is in this state: reading gigabytes takes seconds."""
    _DIGESTS.setdefault((path, *state), digest)


def finite_json_number(text: str) -> float:
    """A number of JSON for ``json.loads``; NaN and infinity are none, though Python writes them.

    Raises:
        ValueError: If it is not finite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def read_json(path: Path, remedy: str, finite: bool = False) -> Any:
    """The JSON value in a regular file.

    Args:
        path: The file.
        remedy: What to do about a damaged one.
        finite: Refuse NaN and infinity, which other programs may write.

    Raises:
        OsrmError: If it cannot be read or is not JSON.
    """
    content = read_bytes(path)
    try:
        if finite:
            return json.loads(content, parse_constant=finite_json_number, parse_float=finite_json_number)
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", remedy) from None


def _kind_of_file(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file for lazy reading: header and index now, each tensor on request.

    Raises:
        OsrmError: If the file is missing, empty, damaged, or not safetensors.
    """
    check_regular_file(path)
    if path.stat().st_size == 0:
        raise OsrmError(f"{path} is empty", "recreate it with the command that wrote it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise OsrmError(
            f"{path} is damaged or not a safetensors file: {error}", "recreate it with the command that wrote it"
        ) from None


class SafetensorsFile:
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

    def get_tensor(self, name: str) -> "torch.Tensor":
        """The tensor of that name.

        Raises:
            OsrmError: If the file cannot be read.
        """
        if self._file is None or self._read >= REOPEN_AFTER_BYTES:
            self._file, self._read = open_safetensors(self._path), 0
        tensor: torch.Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


def read_safetensors_record(path: Path) -> dict[str, Any]:
    """The record that was saved with the tensors; empty for a file of another tool."""
    with open_safetensors(path) as file:
        return {key: value for key, value in read_safetensors_metadata(path, file).items() if key != DIGEST_KEY}


def read_safetensors_metadata(path: Path, file: Any) -> dict[str, Any]:
    """The JSON object under the file's ``osrm`` key."""
    try:
        text = (file.metadata() or {}).get("osrm", "{}")
        return dict(json.loads(text, parse_constant=finite_json_number, parse_float=finite_json_number))
    except (ValueError, TypeError, RecursionError) as error:
        raise OsrmError(
            f"{path}: its metadata cannot be read: {error}", "recreate it with the command that wrote it"
        ) from None


def all_finite(tensor: "torch.Tensor") -> bool:
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


def read_safetensors_tensor(location: TensorLocation) -> "torch.Tensor":
    """One tensor.

    Raises:
        OsrmError: If the file cannot be read, or the tensor contains NaN or infinity.
    """
    with open_safetensors(location.path) as file:
        tensor: torch.Tensor = file.get_tensor(location.name)
    if tensor.is_floating_point() and not all_finite(tensor):
        raise OsrmError(f"{location.path}: NaN or infinity in {location.name}", "give weights that are whole")
    return tensor


def list_indexed_safetensors(index: Path) -> dict[str, TensorLocation]:
    """Read the headers of a model or adapter in several files, see ``list_safetensors_headers``.

    Args:
        index: The file that says which tensor lies in which file beside it.

    Raises:
        OsrmError: If it cannot be read, lists no files, or one of them is damaged or lacks a tensor.
    """
    remedy = "save the model again with save_pretrained"
    value = read_json(index, remedy)
    found_map = value.get("weight_map") if isinstance(value, dict) else None
    weight_map: dict[str, Any] = found_map if isinstance(found_map, dict) else {}
    names = list(weight_map.values())
    if not names or not all(isinstance(name, str) and Path(name).name for name in names):
        raise OsrmError(f"{index} does not list the files of the weights", remedy)
    found = list_safetensors_headers(index.parent / name for name in sorted({Path(name).name for name in names}))
    if missing := sorted(weight_map.keys() - found.keys()):
        raise OsrmError(f"{index.parent / Path(weight_map[missing[0]]).name} lacks {missing[0]}", remedy)
    return found


def list_safetensors_headers(paths: Iterable[Path]) -> dict[str, TensorLocation]:
    """Read the headers of safetensors files: every tensor in the order of the files and of the names.

    Raises:
        OsrmError: If a file is missing or damaged.
    """
    locations = {}
    for path in paths:
        with open_safetensors(path) as file:
            for name in sorted(file.keys()):
                tensor_slice = file.get_slice(name)
                shape = tuple(tensor_slice.get_shape())
                locations[name] = TensorLocation(path, shape, tensor_slice.get_dtype(), name)
    return locations


def read_safetensors_bytes(path: Path, name: str) -> Iterator[bytes]:
    """One tensor's bytes, in pieces."""
    first, last = find_safetensors_bytes(path, name)
    with path.open("rb") as file:
        file.seek(first)
        for position in range(first, last, CHUNK_BYTES):
            yield file.read(min(CHUNK_BYTES, last - position))


def find_safetensors_bytes(path: Path, name: str) -> tuple[int, int]:
    """Where a tensor's bytes begin and end in a safetensors file."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        first, last = json.loads(file.read(start - 8))[name]["data_offsets"]
    return start + first, start + last
