"""Plain LoRA, layer by layer, from adapters of other kinds (LoHa, LoKr, DoRA), or of plain ones at a lower rank."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME, AdapterConfig, parse_adapter_config
from osrm_cli.adapters.formats.peft import list_adapter_tensors, read_adapter_config_values
from osrm_cli.adapters.layers import (
    PREFIX,
    AdapterLayer,
    adapter_layer_rank,
    adapter_layer_scaling,
    check_only_adapter_tensors,
    layer_name_sort_key,
    name_adapter_tensors,
)
from osrm_cli.adapters.trained_rows import find_trained_rows
from osrm_cli.adapters.writer import write_adapter_stream
from osrm_cli.conversion.kinds import KINDS, AdapterKind
from osrm_cli.conversion.trained_tokens import place_trained_tokens, saved_with_trained_tokens
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import truncate_rank
from osrm_cli.models.base_model import find_base_model
from osrm_cli.models.checkpoint import Checkpoint
from osrm_cli.progress import Progress
from osrm_cli.storage.input_files import TensorLocation, read_safetensors_tensor
from osrm_cli.storage.safetensors_writer import TYPES

# PEFT's settings that LoHa and LoKr have under the names of LoRA's.
_SHARED_SETTINGS = (
    *("base_model_name_or_path", "revision", "task_type", "target_modules", "exclude_modules", "layers_to_transform"),
    *("modules_to_save", "r", "rank_pattern", "alpha_pattern", "auto_mapping"),
)


@dataclass(frozen=True)
class PlainSource:
    """An adapter whose updates are to be written as plain LoRA.

    Attributes:
        config: Settings but for ranks and scaling.
        layers: Names of the adapted layers.
        shapes: What is known of them before their updates are.
        update: A layer's update, every scale folded in, and its shape: its kernel, and whether it is an embedding.
        modules: Tensors of modules that were trained as a whole, by their name in the base model.
        dtype: Type of the tensors that were read; the widest one.
    """

    config: AdapterConfig
    layers: list[str]
    shapes: Mapping[str, AdapterLayer]
    update: Callable[[str], tuple[LowRank, AdapterLayer]]
    modules: Mapping[str, torch.Tensor]
    dtype: torch.dtype


def find_convertible_kind(folder: Path) -> AdapterKind | None:
    """The kind of a folder of PEFT's whose update is not two stored factors; ``None`` for all other adapters.

    Raises:
        OsrmError: If its settings cannot be read.
    """
    values = read_adapter_config_values(folder) if (folder / CONFIG_NAME).is_file() else {}
    if not isinstance(values, dict):
        return None
    kind = "DORA" if values.get("use_dora") else "TOKENS" if values.get("trainable_token_indices") else None
    return KINDS.get(kind or str(values.get("peft_type")))


def open_plain_lora(adapter: Adapter) -> PlainSource:
    """A plain adapter, to be cut to a lower rank."""

    def update(layer: str) -> tuple[LowRank, AdapterLayer]:
        return adapter.delta(layer, torch.float64), adapter.layers[layer]

    return PlainSource(
        adapter.config, list(adapter.layers), adapter.layers, update, adapter.tensors_beside_factors(), adapter.dtype
    )


def open_convertible_kind(folder: Path, kind: AdapterKind, model: str | None, revision: str | None) -> PlainSource:
    """Open an adapter of another kind.

    Args:
        folder: A folder of PEFT's.
        kind: Its kind.
        model: The base model, where its weights are needed and it is not where the settings say.
        revision: Its revision on the hub.

    Raises:
        OsrmError: If the adapter or the base model is damaged or missing, or they do not fit.
    """
    settings, tensors = read_adapter_config_values(folder), name_adapter_tensors(folder, list_adapter_tensors(folder))
    config = parse_adapter_config(folder / CONFIG_NAME, _plain_lora_settings(settings, kind))
    rows = find_trained_rows(folder, config, tensors)
    saved = (*config.modules_to_save, *saved_with_trained_tokens(config, rows, tensors))
    config = replace(config, modules_to_save=saved, token_indices=())
    parts: dict[str, dict[str, TensorLocation]] = defaultdict(dict)
    others: dict[str, TensorLocation] = {}
    for name, location in tensors.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.((?:{'|'.join(kind.parts)})\w+)(?:\.weight)?", name)
        if found:
            parts[found[1]][found[2]] = location
        else:
            others[name] = location
    check_only_adapter_tensors(folder, config, others)
    if not parts:
        raise OsrmError(f"{folder} holds no tensors of {kind.name}", "save the adapter again with PEFT")
    checkpoint = _open_base_for_conversion(folder, config, model, revision) if kind.needs_base else None
    modules = {name.removeprefix(PREFIX): read_safetensors_tensor(location) for name, location in others.items()}
    if checkpoint:
        modules = place_trained_tokens(folder, config, rows, modules, checkpoint)
    update = partial(_plain_lora_update, folder, kind, config, parts, checkpoint)
    kinds = {TYPES[place.dtype] for held in parts.values() for place in held.values() if place.dtype in TYPES}
    dtype = torch.float64 if torch.float64 in kinds else torch.float32
    return PlainSource(config, sorted(parts, key=layer_name_sort_key), {}, update, modules, dtype)


def write_plain_lora(
    folder: Path, source: PlainSource, rank: int | None, energy: float | None, progress: Progress
) -> dict[str, float]:
    """Write a folder of PEFT's whose scalings are 1.

    Args:
        folder: An existing, empty folder.
        source: What is written.
        rank: Largest rank of a layer; by default the exact one.
        energy: Share of each layer's ``||dW||_F^2`` to keep.
        progress: Draws a bar.

    Returns:
        By layer, the share of the energy that was kept.
    """
    config = replace(
        source.config, lora_alpha=None, use_rslora=False, rank_pattern={}, alpha_pattern={}, lora_dropout=0.0
    )
    kept: dict[str, float] = {}
    shapes = dict(source.shapes)
    with (
        progress("convert", len(source.layers), "layers") as advance,
        write_adapter_stream(folder, source.layers, config, source.modules, source.dtype, shapes) as writer,
    ):
        for layer in source.layers:
            delta, shapes[layer] = source.update(layer)
            kept[layer] = 1.0
            if rank is not None or energy is not None:
                delta, kept[layer] = truncate_rank(delta, rank, energy)
            writer.add(layer, delta)
            advance(1)
    return kept


def _plain_lora_settings(values: Mapping[str, Any], kind: AdapterKind) -> dict[str, Any]:
    """The settings that plain LoRA of the same layers would have."""
    if kind.needs_base:
        return {**values, "use_dora": False}
    shared = {key: values[key] for key in _SHARED_SETTINGS if key in values}
    return {**shared, "peft_type": "LORA", "lora_alpha": values.get("alpha", 8)}


def _open_base_for_conversion(
    folder: Path, config: AdapterConfig, model: str | None, revision: str | None
) -> Checkpoint:
    name = model or config.base_model
    if name is None:
        raise OsrmError(f"{folder} does not name its base model, whose weights it rescales", "give it with --model")
    return Checkpoint.open(find_base_model(name, revision or config.revision))


def _plain_lora_update(
    folder: Path,
    kind: AdapterKind,
    config: AdapterConfig,
    parts: Mapping[str, Mapping[str, TensorLocation]],
    checkpoint: Checkpoint | None,
    layer: str,
) -> tuple[LowRank, AdapterLayer]:
    tensors = {name: read_safetensors_tensor(location) for name, location in parts[layer].items()}
    if any(name.startswith("lora_embedding") for name in tensors):
        raise OsrmError(f"{folder}: {layer} is an embedding with {kind.name}", "merge it into the model with PEFT")
    rank = adapter_layer_rank(config, layer)
    if checkpoint:
        A, B = tensors["lora_A"], tensors["lora_B"]
        tensors["weight"] = checkpoint.read_weight(layer, (B.shape[0], *A.shape[1:]), config.fan_in_fan_out)
    try:
        delta, kernel = kind.update(tensors, adapter_layer_scaling(config, layer, rank))
    except (ValueError, KeyError, RuntimeError) as error:
        raise OsrmError(f"{folder}: {layer} is not {kind.name}: {error}", "save the adapter again with PEFT") from None
    return delta, AdapterLayer(*delta.shape, delta.rank, 1.0, embedding=False, kernel=tuple(kernel))
