"""Adapters of layers of a diffusion pipeline, as files of the formats, with random factors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.layers import AdapterLayer
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.adapters.writer import write_adapter_stream
from osrm_cli.linalg.low_rank import LowRank

QUERY = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.1.resnets.0.conv1"
LAYERS: dict[str, tuple[int, ...]] = {QUERY: (6, 4), OUT: (4, 6), CONV: (5, 3, 3, 3)}  # shapes of the weights


def write_peft(
    folder: Path,
    layers: Mapping[str, tuple[int, ...]] = LAYERS,
    ranks: Mapping[str, int] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    size: float = 1.0,
    **settings: Any,
) -> Adapter:
    """Write a folder of PEFT's whose layers have these weights."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shapes, deltas = {}, {}
    for name, (d_out, *inputs) in layers.items():
        rank, d_in = (ranks or {}).get(name, 2), torch.Size(inputs).numel()
        shapes[name] = AdapterLayer(d_out, d_in, rank, 1.0, embedding=False, kernel=tuple(inputs[1:]))
        B, A = (torch.randn(*shape, generator=generator) * size for shape in ((d_out, rank), (rank, d_in)))
        deltas[name] = LowRank(B.to(dtype), A.to(dtype))
    config = AdapterConfig(None, **{"lora_alpha": 2.0, **settings})
    with write_adapter_stream(folder, list(layers), config, dtype=dtype, shapes=shapes) as writer:
        for name, delta in deltas.items():
            writer.add(name, delta)
    return open_adapter(folder)


def write_file(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    """Write a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


def pair(style: tuple[str, str], shape: tuple[int, ...], rank: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two random factors of a weight of this shape, by the names of A and of B."""
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(shape) - 2)
    A = torch.randn(rank, *shape[1:], generator=generator)
    return {style[0]: A, style[1]: torch.randn(shape[0], rank, *ones, generator=generator)}


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Every layer's update in float64."""
    return {layer: adapter.delta(layer, torch.float64).dense() for layer in adapter.layers}
