"""Folders of MLX LM: ``adapters.safetensors`` and an ``adapter_config.json`` of its own.

A layer computes ``y + scale * (x @ lora_a) @ lora_b``: PEFT's factors transposed, and one rank and one scale for all
layers.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.formats.contents import AdapterContents, AdapterOutput, make_adapter_config
from osrm_cli.adapters.formats.single_file import check_adapter_fits_format, fold_adapter_scaling
from osrm_cli.adapters.layers import FACTORS, PREFIX
from osrm_cli.adapters.layers import WEIGHTS_NAME as PEFT_WEIGHTS
from osrm_cli.adapters.writer import cast_adapter_factor
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.storage.input_files import TensorLocation, list_safetensors_headers, read_json
from osrm_cli.storage.safetensors_writer import write_safetensors

WEIGHTS_NAME = "adapters.safetensors"
SUFFIXES = (".lora_a", ".lora_b")
_EMBEDDINGS = ("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embed_in")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def matches(path: Path) -> bool:
    """Whether it is a folder with ``adapters.safetensors`` and none of PEFT's weights."""
    return (path / WEIGHTS_NAME).is_file() and not (path / PEFT_WEIGHTS).exists()


def read(path: Path) -> AdapterContents:
    """Read the settings and the headers.

    Raises:
        OsrmError: If the settings are missing or describe anything but plain LoRA, or a factor has no partner.
    """
    settings = _read_mlx_settings(path / CONFIG_NAME)
    tensors: dict[str, TensorLocation] = {}
    ranks: dict[str, int] = {}
    for stored, location in list_safetensors_headers([path / WEIGHTS_NAME]).items():
        layer, dot, suffix = stored.rpartition(".")
        if dot + suffix not in SUFFIXES:
            raise OsrmError(
                f"{path}: {stored} is not one of LoRA's two factors",
                "only plain LoRA can be read; mlx_lm.fuse writes a whole model, whatever the adapter is",
            )
        if len(location.shape) != 2:
            raise OsrmError(
                f"{path}: {stored} has shape {location.shape}, expected a matrix",
                "layers with one factor per expert cannot be read; mlx_lm.fuse writes a whole model",
            )
        is_embedding = layer.rpartition(".")[2] in _EMBEDDINGS
        tensors[PREFIX + layer + FACTORS[is_embedding][SUFFIXES.index(dot + suffix)]] = location.T
        if suffix == "lora_a":
            ranks[layer] = location.shape[1]
    if not ranks:
        raise OsrmError(f"{path}: {WEIGHTS_NAME} holds no lora_a", "train the adapter again with mlx_lm.lora")
    scale = settings["scale"]
    config = make_adapter_config(ranks, {layer: scale * rank for layer, rank in ranks.items()})
    return AdapterContents(replace(config, base_model=settings["model"], lora_dropout=settings["dropout"]), tensors)


def write(path: Path, output: AdapterOutput) -> None:
    """Write the factors transposed: filled up with zeros to one rank, and with B scaled where the scales differ.

    Raises:
        OsrmError: If the adapter holds convolutions or whole modules, or the scales cannot be made one exactly.
    """
    adapter = output.adapter
    check_adapter_fits_format(adapter, "mlx")
    if kernel := next((layer for layer, shape in adapter.layers.items() if shape.kernel), None):
        raise OsrmError(f"{adapter.source} adapts the convolution {kernel}, which MLX LM has not", "use --format peft")
    if output.dtype not in _DTYPES:
        raise OsrmError(f"MLX has no matrices of {str(output.dtype).removeprefix('torch.')}", "use --dtype float32")
    scalings = {shape.scaling for shape in adapter.layers.values()}
    scale = scalings.pop() if len(scalings) == 1 else 1.0
    rank = max(shape.rank for shape in adapter.layers.values())
    names = [layer + suffix for layer in adapter.layers for suffix in SUFFIXES]
    metadata = {**output.metadata, "format": "mlx"}
    with write_safetensors(path / WEIGHTS_NAME, names, metadata) as stream:
        for layer, shape in adapter.layers.items():
            factors = adapter.lora_factors(layer, adapter.dtype)
            B = fold_adapter_scaling(factors.B, shape.scaling / scale, layer, output)
            padded = LowRank(B, factors.A).padded_to_rank(rank)
            for suffix, factor in zip(SUFFIXES, (padded.A.T, padded.B.T), strict=True):
                stream.add(layer + suffix, cast_adapter_factor(factor, output.dtype, layer))
    settings = {
        "fine_tune_type": "lora",
        "lora_parameters": {
            "dropout": adapter.config.lora_dropout,
            "keys": sorted({re.sub(r"^.*\blayers\.\d+\.", "", layer) for layer in adapter.layers}),
            "rank": rank,
            "scale": scale,
        },
        "model": adapter.config.base_model,
        "num_layers": -1,
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (path / CONFIG_NAME).write_text(text, encoding="utf-8")


def _read_mlx_settings(path: Path) -> dict[str, Any]:
    """``model``, ``scale`` and ``dropout`` of an adapter's settings."""
    values = read_json(path, "train the adapter again with mlx_lm.lora", finite=True)
    parameters = values.get("lora_parameters") if isinstance(values, dict) else None
    if not isinstance(parameters, Mapping):
        raise OsrmError(f"{path} has no lora_parameters", "only LoRA adapters of mlx_lm.lora can be read")
    kind = values.get("fine_tune_type", "lora")
    if kind != "lora":
        raise OsrmError(
            f"{path}: fine_tune_type is {kind!r}, expected 'lora'",
            "mlx_lm.fuse writes a whole model; osrm reads LoRA adapters",
        )
    if "alpha" in parameters:
        raise OsrmError(
            f"{path}: lora_parameters has alpha, which versions of MLX LM read differently",
            "remove it, after setting scale to the number that multiplies the update in your version",
        )
    numbers = {key: parameters.get(key, default) for key, default in (("scale", None), ("dropout", 0.0))}
    for key, value in numbers.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise OsrmError(f"{path}: {key} of lora_parameters is {value!r:.60}, expected a number")
    model = values.get("model")
    return {"model": model if isinstance(model, str) else None, **numbers}
