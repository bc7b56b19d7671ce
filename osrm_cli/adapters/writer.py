"""Write LoRA adapters as plain PEFT folders, layer by layer."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from osrm_cli.adapters.config import CONFIG_NAME, AdapterConfig
from osrm_cli.adapters.layers import FACTORS, PREFIX, WEIGHTS_NAME
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.storage import safetensors_io
from osrm_cli.storage.safetensors_io import TensorStream, write_stream


class AdapterWriter:
    """An adapter folder being written: memory holds one layer at a time."""

    def __init__(self, stream: TensorStream, dtype: torch.dtype, embeddings: Collection[str]) -> None:
        self._stream = stream
        self._dtype = dtype
        self._embeddings = embeddings
        self.ranks: dict[str, int] = {}

    def add(self, layer: str, delta: LowRank) -> None:
        """Append one layer's factors.

        Raises:
            OsrmError: If they cannot be represented in the type that is written.
        """
        names = (PREFIX + layer + suffix for suffix in FACTORS[layer in self._embeddings])
        for name, factor in zip(names, (delta.A, delta.B), strict=True):
            self._stream.add(name, _in_dtype(factor, self._dtype, layer))
        self.ranks[layer] = delta.rank


@contextmanager
def write_adapter_stream(
    folder: Path,
    layers: Collection[str],
    config: AdapterConfig,
    heads: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    embeddings: Collection[str] = (),
) -> Iterator[AdapterWriter]:
    """Open an adapter folder for writing its layers in any order; the settings are written at the end.

    Args:
        folder: An existing, empty folder that is being staged.
        layers: Full names of the layers that will be added.
        config: Everything but the ranks, which are taken from the factors; target layers if it names none.
        heads: Tensors of ``modules_to_save`` by their name in the base model.
        dtype: Type of the factors in the file; heads keep theirs.
        embeddings: Those of ``layers`` that are embeddings.
    """
    heads = heads or {}
    names = [PREFIX + layer + suffix for layer in layers for suffix in FACTORS[layer in embeddings]]
    with write_stream(folder / WEIGHTS_NAME, [*names, *(PREFIX + name for name in heads)]) as stream:
        # Wider tensors first, so that each starts at a multiple of its own width.
        wide = [name for name in sorted(heads) if heads[name].element_size() >= dtype.itemsize]
        for name in sorted(wide, key=lambda name: -heads[name].element_size()):
            stream.add(PREFIX + name, heads[name])
        writer = AdapterWriter(stream, dtype, embeddings)
        yield writer
        for name in sorted(heads.keys() - set(wide), key=lambda name: (-heads[name].element_size(), name)):
            stream.add(PREFIX + name, heads[name])
    _write_config(folder, with_ranks(config, writer.ranks))


def write_adapter(
    folder: Path,
    deltas: Mapping[str, LowRank] | Iterable[tuple[str, LowRank]],
    config: AdapterConfig,
    heads: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a whole adapter of linear layers; see ``write_adapter_stream``."""
    layers = dict(deltas)
    with write_adapter_stream(folder, layers, config, heads, dtype) as writer:
        for layer in sorted(layers):
            writer.add(layer, layers[layer])


def with_ranks(config: AdapterConfig, ranks: Mapping[str, int]) -> AdapterConfig:
    """The settings with which PEFT builds these ranks; the scaling is 1 where ``config`` has no ``lora_alpha``."""
    usual_rank = max(ranks.values())
    exceptions = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != usual_rank}
    return replace(
        config,
        r=usual_rank,
        rank_pattern=exceptions,
        alpha_pattern=exceptions if config.lora_alpha is None else config.alpha_pattern,
        target_modules=config.target_modules or tuple(ranks),
    )


def _write_config(folder: Path, config: AdapterConfig) -> None:
    """Write the settings with sorted keys: equal settings give equal bytes."""
    values = {
        "alpha_pattern": dict(config.alpha_pattern),
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": config.r if config.lora_alpha is None else config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": sorted(config.modules_to_save) or None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": dict(config.rank_pattern),
        "revision": config.revision,
        "target_modules": config.target_modules
        if isinstance(config.target_modules, str)
        else sorted(config.target_modules),
        "task_type": config.task_type,
        "use_dora": False,
        "use_rslora": config.use_rslora,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_dtype(factor: torch.Tensor, dtype: torch.dtype, layer: str) -> torch.Tensor:
    narrow = factor.to(dtype)
    if not safetensors_io.all_finite(narrow):
        problem = (
            "NaN or infinity" if not safetensors_io.all_finite(factor) else f"entries up to {factor.abs().max():.3g}"
        )
        raise OsrmError(
            f"{layer}: {problem} cannot be written as {str(dtype).removeprefix('torch.')}", "use --dtype float32"
        )
    return narrow
