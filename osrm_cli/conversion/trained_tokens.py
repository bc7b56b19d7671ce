"""Rows of an embedding that an adapter has trained (``trainable_token_indices``), as a module that is saved whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.layers import PREFIX
from osrm_cli.errors import OsrmError
from osrm_cli.models.checkpoint import Checkpoint
from osrm_cli.storage.input_files import TensorLocation, read_tensor

_ROWS, _BASE = ".token_adapter.trainable_tokens_delta", ".token_adapter.base_layer.weight"
_OUTPUT = "lm_head"  # of a causal model, tied to the embedding where the checkpoint holds none


@dataclass(frozen=True)
class TrainedRows:
    """New rows of one embedding.

    Attributes:
        indices: Their numbers.
        values: ``(len(indices), d)``.
        is_causal: Whether the adapter was trained on a causal model, whose output layer may be tied to the embedding.
    """

    indices: list[int]
    values: TensorLocation
    is_causal: bool


def find_trained_rows(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, TensorLocation]
) -> dict[str, TrainedRows]:
    """The rows that an adapter holds, by the embedding's name in the base model.

    Raises:
        OsrmError: If the settings do not say which they are.
    """
    given = settings.get("trainable_token_indices")
    found = {}
    for name, location in tensors.items():
        if not name.endswith(_ROWS):
            continue
        module = name.removeprefix(PREFIX).removesuffix(_ROWS)
        own = (
            given
            if isinstance(given, list)
            else next((value for key, value in (given or {}).items() if f".{module}".endswith(f".{key}")), None)
        )
        if not isinstance(own, list) or not all(type(index) is int and index >= 0 for index in own):
            raise OsrmError(
                f"{folder / CONFIG_NAME}: trainable_token_indices does not say which rows of {module} were trained",
                "save the adapter again with PEFT",
            )
        found[module] = TrainedRows(own, location, settings.get("task_type") == "CAUSAL_LM")
    return found


def saved_beside_rows(rows: Mapping[str, TrainedRows], tensors: Mapping[str, TensorLocation]) -> list[str]:
    """Modules to save whole: the embeddings, and the output layer of a causal model."""
    names = {module.rpartition(".")[2] for module in rows}
    is_causal = any(each.is_causal for each in rows.values())
    return sorted(names | ({_OUTPUT} if is_causal or f"{PREFIX}{_OUTPUT}.weight" in tensors else set()))


def place_trained_rows(
    folder: Path, rows: Mapping[str, TrainedRows], modules: Mapping[str, torch.Tensor], checkpoint: Checkpoint
) -> dict[str, torch.Tensor]:
    """The modules with the new rows in the embeddings, and in an output layer that is tied to one.

    Args:
        folder: The adapter, for errors.
        rows: From ``find_trained_rows``.
        modules: Tensors that the adapter stores beside its factors, by their name in the base model.
        checkpoint: The base model.

    Raises:
        OsrmError: If the rows do not fit.
    """
    placed = {name: tensor for name, tensor in modules.items() if not name.endswith((_ROWS, _BASE))}
    for module, found in rows.items():
        values, stored = modules[module + _ROWS], modules.get(module + _BASE)
        own = checkpoint.find_names(f"{module}.weight")
        if stored is None and len(own) == 1:
            stored = read_tensor(checkpoint.tensors[own[0]])
        if stored is None or values.shape != (len(found.indices), stored.shape[1]) or max(found.indices) >= len(stored):
            raise OsrmError(
                f"{folder}: the trained rows of {module} do not fit the base model", "give the right one with --model"
            )
        whole = stored.to(torch.promote_types(stored.dtype, values.dtype)).clone()
        whole[found.indices] = values.to(whole.dtype)
        placed[f"{module}.weight"] = whole
        output = f"{_OUTPUT}.weight"
        if found.is_causal and output not in placed:
            untied = checkpoint.find_names(output)
            placed[output] = read_tensor(checkpoint.tensors[untied[0]]) if untied else whole.clone()
    return placed
