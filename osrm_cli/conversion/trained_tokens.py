"""Rows of an embedding that an adapter has trained (``trainable_token_indices``), as a module that is saved whole."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.layers import PREFIX, ROWS
from osrm_cli.adapters.trained_rows import BASE_COPY
from osrm_cli.errors import OsrmError
from osrm_cli.models.checkpoint import Checkpoint
from osrm_cli.storage.input_files import read_safetensors_tensor

_OUTPUT = "lm_head"  # of a causal model, tied to the embedding where the checkpoint holds none


def saved_with_trained_tokens(config: AdapterConfig, rows: Iterable[str], tensors: Iterable[str]) -> list[str]:
    """Modules to save whole: the embeddings, and the output layer of a causal model.

    Args:
        config: The adapter's settings.
        rows: Modules of which it has trained rows.
        tensors: Its tensors, by the names that PEFT gives them.
    """
    names = {module.rpartition(".")[2] for module in rows}
    has_output = bool(names) and config.task_type == "CAUSAL_LM"
    return sorted(names | ({_OUTPUT} if has_output or f"{PREFIX}{_OUTPUT}.weight" in tensors else set()))


def place_trained_tokens(
    folder: Path,
    config: AdapterConfig,
    rows: Mapping[str, tuple[int, ...]],
    modules: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint,
) -> dict[str, torch.Tensor]:
    """The modules with the new rows in the embeddings, and in an output layer that is tied to one.

    Args:
        folder: The adapter, for errors.
        config: Its settings.
        rows: From ``find_trained_rows``.
        modules: Tensors that the adapter stores beside its factors, by their name in the base model.
        checkpoint: The base model.

    Raises:
        OsrmError: If the rows do not fit.
    """
    placed = {name: tensor for name, tensor in modules.items() if not name.endswith((ROWS, BASE_COPY))}
    for module, indices in rows.items():
        values, stored = modules[module + ROWS], modules.get(module + BASE_COPY)
        own = checkpoint.find_names(f"{module}.weight")
        if stored is None and len(own) == 1:
            stored = read_safetensors_tensor(checkpoint.tensors[own[0]])
        if stored is None or values.shape != (len(indices), stored.shape[1]) or max(indices) >= len(stored):
            raise OsrmError(
                f"{folder}: the trained rows of {module} do not fit the base model", "give the right one with --model"
            )
        whole = stored.to(torch.promote_types(stored.dtype, values.dtype)).clone()
        whole[list(indices)] = values.to(whole.dtype)
        placed[f"{module}.weight"] = whole
        output = f"{_OUTPUT}.weight"
        if config.task_type == "CAUSAL_LM" and output not in placed:
            untied = checkpoint.find_names(output) if output not in checkpoint.architecture.tied else []
            placed[output] = read_safetensors_tensor(checkpoint.tensors[untied[0]]) if untied else whole.clone()
    return placed
