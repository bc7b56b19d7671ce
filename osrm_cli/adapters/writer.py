"""Write LoRA adapters as plain PEFT folders, layer by layer."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.config import CONFIG_NAME, AdapterConfig
from osrm_cli.adapters.layers import (
    FACTORS,
    PREFIX,
    WEIGHTS_NAME,
    AdapterLayer,
    find_expert_parameter,
    stored_factors_name,
)
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.storage import input_files
from osrm_cli.storage.safetensors_writer import SafetensorsStream, write_safetensors

_EXPERT = re.compile(r"\.experts\.\d+\.")


class AdapterWriter:
    """An adapter folder being written: memory holds one layer at a time, or the experts of one parameter.

    Args:
        stream: The file of the weights.
        dtype: Type of the factors in the file.
        config: The settings, which say what layers are experts.
        layers: Every layer that will be added.
        shapes: Layers as ``AdapterLayer`` describes them; those that it lacks are linear.

    Attributes:
        ranks: Ranks so far, by layer or by the parameter that stacks experts.
    """

    def __init__(
        self,
        stream: SafetensorsStream,
        dtype: torch.dtype,
        config: AdapterConfig,
        layers: Collection[str],
        shapes: Mapping[str, AdapterLayer],
    ) -> None:
        self._stream = stream
        self._dtype = dtype
        self._config = config
        self._shapes = shapes
        self._counts = Counter(find_expert_parameter(config, layer) for layer in layers)
        self._experts: dict[str, dict[int, LowRank]] = defaultdict(dict)
        self.ranks: dict[str, int] = {}

    def add(self, layer: str, delta: LowRank) -> None:
        """Append one layer's factors.

        Raises:
            OsrmError: If they cannot be represented in the type that is written.
        """
        parent = find_expert_parameter(self._config, layer)
        if parent is None:
            shape = self._shapes.get(layer)
            factors = shape_peft_factors(delta, shape.kernel) if shape else (delta.A, delta.B)
            self._append_factors(layer, factors, FACTORS[bool(shape and shape.embedding)])
            self.ranks[layer] = len(delta.A)
            return
        self._experts[parent][int(layer.rpartition(".")[2])] = delta
        if len(self._experts[parent]) == self._counts[parent]:
            experts = self._experts.pop(parent)
            delta = _join_expert_factors([experts[number] for number in sorted(experts)])
            self._append_factors(stored_factors_name(self._config, parent), (delta.A, delta.B), FACTORS[False])
            self.ranks[parent] = len(delta.A) // len(experts)

    def _append_factors(self, name: str, factors: tuple[torch.Tensor, torch.Tensor], suffixes: tuple[str, str]) -> None:
        for suffix, factor in zip(suffixes, factors, strict=True):
            self._stream.add(PREFIX + name + suffix, cast_adapter_factor(factor, self._dtype, name))


@contextmanager
def write_adapter_stream(
    folder: Path,
    layers: Collection[str],
    config: AdapterConfig,
    heads: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    shapes: Mapping[str, AdapterLayer] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[AdapterWriter]:
    """Open an adapter folder for writing its layers in any order; the settings are written at the end.

    Args:
        folder: An existing, empty folder that is being staged.
        layers: Full names of the layers that will be added.
        config: Everything but the ranks, which are taken from the factors; target layers if it names none.
        heads: Tensors beside the factors, such as those of ``modules_to_save``, by their name in the base model.
        dtype: Type of the factors in the file; heads keep theirs.
        shapes: Layers as ``AdapterLayer`` describes them; those that it lacks are linear.
        metadata: Texts for the header of the weights.
    """
    heads, shapes = heads or {}, {} if shapes is None else shapes
    names = _adapter_tensor_names(config, layers, shapes)
    with write_safetensors(folder / WEIGHTS_NAME, [*names, *(PREFIX + name for name in heads)], metadata) as stream:
        # Wider tensors first, so that each starts at a multiple of its own width.
        wide = [name for name in sorted(heads) if heads[name].element_size() >= dtype.itemsize]
        for name in sorted(wide, key=lambda name: -heads[name].element_size()):
            stream.add(PREFIX + name, heads[name])
        writer = AdapterWriter(stream, dtype, config, layers, shapes)
        yield writer
        for name in sorted(heads.keys() - set(wide), key=lambda name: (-heads[name].element_size(), name)):
            stream.add(PREFIX + name, heads[name])
    experts = {layer: rank for layer, rank in writer.ranks.items() if _EXPERT.search(layer)}
    if len(set(experts.values())) > 1:  # PEFT stacks the experts of a layer, for which they need one rank
        widest = max(experts.values())
        _pad_adapter_ranks(folder / WEIGHTS_NAME, experts, widest, metadata)
        writer.ranks.update(dict.fromkeys(experts, widest))
    _write_adapter_config(folder, adapter_config_with_ranks(config, writer.ranks))


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


def _join_expert_factors(experts: Sequence[LowRank]) -> LowRank:
    """The factors of all experts of a parameter as PEFT stores them, lower ranks filled up with zeros.

    Returns:
        ``lora_B`` and ``lora_A``, whose product means nothing.
    """
    rank = max(expert.rank for expert in experts)
    padded = [expert.padded_to_rank(rank) for expert in experts]
    B, A = torch.stack([expert.B for expert in padded]), torch.stack([expert.A for expert in padded])
    return LowRank(B.permute(1, 2, 0).flatten(1), A.flatten(0, 1))


def _adapter_tensor_names(
    config: AdapterConfig, layers: Collection[str], shapes: Mapping[str, AdapterLayer]
) -> list[str]:
    """The factors of every layer; of experts those of the parameter that stacks them."""
    parents = {layer: find_expert_parameter(config, layer) for layer in layers}
    embeddings = {layer for layer, shape in shapes.items() if shape.embedding}
    plain = [layer for layer, parent in parents.items() if parent is None]
    modules = dict.fromkeys(stored_factors_name(config, parent) for parent in parents.values() if parent)
    names = [PREFIX + layer + suffix for layer in plain for suffix in FACTORS[layer in embeddings]]
    return names + [PREFIX + module + suffix for module in modules for suffix in FACTORS[False]]


def adapter_config_with_ranks(config: AdapterConfig, ranks: Mapping[str, int]) -> AdapterConfig:
    """The settings with which PEFT builds these ranks; the scaling is 1 where ``config`` has no ``lora_alpha``."""
    # A pattern of a single expert's rank would not match the stack that PEFT makes of them.
    usual_rank = max((rank for layer, rank in ranks.items() if _EXPERT.search(layer)), default=max(ranks.values()))
    exceptions = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != usual_rank}
    return replace(
        config,
        r=usual_rank,
        rank_pattern=exceptions,
        alpha_pattern=exceptions if config.lora_alpha is None else config.alpha_pattern,
        target_modules=config.target_modules
        or tuple(name for name in ranks if not _is_adapted_parameter(config, name)),
    )


def _is_adapted_parameter(config: AdapterConfig, name: str) -> bool:
    return find_expert_parameter(config, f"{name}.0") is not None


def _pad_adapter_ranks(path: Path, layers: Collection[str], rank: int, metadata: Mapping[str, str] | None) -> None:
    """Write an adapter's file again, with zeros at the end of some layers' factors."""
    factors = {PREFIX + layer + suffix: axis for layer in layers for axis, suffix in enumerate(FACTORS[False])}
    names = input_files.open_safetensors(path).offset_keys()
    file, padded = input_files.SafetensorsFile(path), path.with_name(f"{path.name}.padded")
    with write_safetensors(padded, names, metadata) as stream:
        for name in names:
            tensor = file.get_tensor(name)
            if name in factors:
                missing = rank - tensor.shape[factors[name]]
                tensor = torch.nn.functional.pad(tensor, (0, missing) if factors[name] else (0, 0, 0, missing))
            stream.add(name, tensor)
    padded.replace(path)


def _write_adapter_config(folder: Path, config: AdapterConfig) -> None:
    """Write the settings with sorted keys: equal settings give equal bytes."""
    values: dict[str, Any] = {
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
    if config.token_indices:
        values["trainable_token_indices"] = config.token_indices
    if config.target_parameters:
        values["target_parameters"] = sorted(config.target_parameters)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def shape_peft_factors(delta: LowRank, kernel: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """``A`` and ``B`` as PEFT shapes them: of a convolution ``(r, c_in, *kernel)`` and ``(d_out, r, 1, 1)``."""
    A, B = delta.A, delta.B
    if not kernel:
        return A, B
    return A.reshape(delta.rank, -1, *kernel), B.reshape(*B.shape, *(1 for _ in kernel))


def cast_adapter_factor(factor: torch.Tensor, dtype: torch.dtype, layer: str) -> torch.Tensor:
    """A factor in the type that is written.

    Raises:
        OsrmError: If it is not finite, or not there.
    """
    narrow = factor.to(dtype)
    if not input_files.all_finite(factor):
        raise OsrmError(
            f"{layer}: NaN or infinity in the result: a weight is damaged or too large",
            "osrm verify names files that have changed",
        )
    if not input_files.all_finite(narrow):
        kind = str(dtype).removeprefix("torch.")
        raise OsrmError(
            f"{layer}: entries up to {factor.abs().max():.3g} cannot be written as {kind}", "use --dtype float32"
        )
    return narrow
