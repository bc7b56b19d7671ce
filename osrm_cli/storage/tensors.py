"""Safetensors files with one metadata key, ``osrm``, that holds sorted JSON: equal contents are equal bytes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from osrm_cli.errors import OsrmError

MAPPED = 2 << 20  # bytes of a file that may stay in memory after they were read


def save(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors in the order of their names; call it on a staging path of ``atomic``."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(ordered, path, metadata={"osrm": json.dumps(facts, sort_keys=True, allow_nan=False)})


def open_tensors(path: Path) -> Any:
    """Open a safetensors file for lazy reading: header and index now, each tensor when it is asked for.

    Raises:
        OsrmError: If the file is missing, empty, damaged, or not safetensors.
    """
    if not path.is_file():
        raise OsrmError(f"{path} is missing" if not path.exists() else f"{path} is a folder, expected a file")
    if path.stat().st_size == 0:
        raise OsrmError(f"{path} is empty", "make it anew with the command that wrote it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise OsrmError(
            f"{path} is damaged or no safetensors file: {error}", "make it anew with the command that wrote it"
        ) from None


class TensorFile:
    """A safetensors file whose tensors are asked for one by one.

    The library maps the file, and what was read of it stays in memory as long as the file is open: of many large files,
    all of them in the end. It is therefore opened anew after every ``MAPPED`` bytes.

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
        if self._file is None or self._read >= MAPPED:
            self._file, self._read = open_tensors(self._path), 0
        tensor: torch.Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object under the file's ``osrm`` key; empty for a file of another tool."""
    with open_tensors(path) as file:
        text = (file.metadata() or {}).get("osrm", "{}")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise OsrmError(
            f"{path}: its metadata cannot be read: {error}", "make it anew with the command that wrote it"
        ) from None


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, from the extremes alone: a tenth of the time of looking at each."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in tensor.aminmax())
