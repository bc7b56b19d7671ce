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
