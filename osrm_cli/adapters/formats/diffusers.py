"""LoRA files of diffusers, and others with dotted names: ``unet.<layer>.lora_A.weight``, ``<layer>.lora.down.weight``.

diffusers 0.34 and later keep the settings as JSON in the header; without them, and without ``alpha`` tensors, the
scaling is 1. The files that are written here say it in both ways: the scaling is folded into B, so that any program
that reads them, and any older version, comes to the same update.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osrm_cli.adapters.config import CONFIG_NAME, AdapterConfig, parse_adapter_config
from osrm_cli.adapters.formats.components import assign_components, infer_component, shorten_names, split_component
from osrm_cli.adapters.formats.contents import (
    AdapterContents,
    AdapterOutput,
    exact_layer_pattern,
    make_adapter_config,
    read_alpha,
)
from osrm_cli.adapters.formats.single_file import check_only_linear_layers, has_lora_tensor, write_factors
from osrm_cli.adapters.layers import FACTORS, PREFIX, adapter_layer_rank, plain_alpha
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import TensorLocation, list_safetensors_headers, open_safetensors
from osrm_cli.storage.safetensors_writer import write_safetensors

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
SETTINGS_KEY = "lora_adapter_metadata"

# ``to_q_lora.down.weight`` of the first files, ``.lora.down.weight``, ``.lora_linear_layer.down.weight`` of text
# encoders, ``.lora_down.weight`` and PEFT's ``.lora_A.weight``.
_FACTOR = re.compile(r"(.+)([._])lora(?:_linear_layer)?[._](down|up|A|B)(?:\.default)?(?:\.weight)?")
_ALPHA = re.compile(r"(.+)\.alpha")
_FACTOR_A = ("down", "A")


def matches(path: Path) -> bool:
    """Whether it is a file, or a folder with ``pytorch_lora_weights.safetensors``, whose tensors are named so."""
    file = _diffusers_weights_file(path)
    return file.is_file() and has_lora_tensor(
        file, lambda name: bool(_FACTOR.fullmatch(name)) and not _is_peft_or_kohya_name(name)
    )


def read(path: Path) -> AdapterContents:
    """Read the headers, the alphas, and the settings where the header has them.

    Raises:
        OsrmError: If the file holds more than the two factors, or settings of another kind than plain LoRA.
    """
    path = _diffusers_weights_file(path)
    factors: dict[str, dict[str, TensorLocation]] = defaultdict(dict)
    alphas: dict[str, float] = {}
    with open_safetensors(path) as file:
        settings = _read_diffusers_settings(path, (file.metadata() or {}).get(SETTINGS_KEY))
        for stored, location in list_safetensors_headers([path]).items():
            if found := _FACTOR.fullmatch(stored):
                suffix = FACTORS[False][found[3] not in _FACTOR_A]
                if factors[_diffusers_layer_name(found)].setdefault(suffix, location) is not location:
                    raise OsrmError(f"{path}: {stored} is there twice, under two names", "save the file again")
            elif (found := _ALPHA.fullmatch(stored)) and location.shape in ((), (1,)):
                alphas[_clean_diffusers_name(found[1])] = read_alpha(file, stored, path)
            else:
                raise OsrmError(
                    f"{path}: {stored} is neither a factor of LoRA nor its alpha",
                    "only plain LoRA can be read: two factors for each layer",
                )
    for layer, held in factors.items():
        if missing := set(FACTORS[False]) - held.keys():
            raise OsrmError(
                f"{path}: {layer} has no {missing.pop().removesuffix('.weight')[1:]}", "save the file again"
            )
    return _make_diffusers_contents(path, factors, alphas, settings)


def write(path: Path, output: AdapterOutput) -> None:
    """Write the factors with the scaling folded into B, and the settings into the header.

    Raises:
        OsrmError: If the adapter holds anything but factors, or the scaling cannot be folded in exactly.
    """
    adapter = output.adapter
    check_only_linear_layers(adapter, "diffusers")
    components = assign_components(adapter.source, adapter.layers, output.component)
    if any(component == "diffusion_model" for component, _ in components.values()):
        raise OsrmError(
            f"{adapter.source} adapts a transformer in its authors' layout, whose layers diffusers splits",
            "use --format kohya: diffusers converts such files when it loads them",
        )
    names = {layer: f"{component}.{name}" for layer, (component, name) in components.items()}
    suffixes = FACTORS[False]
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    for layer, (component, name) in components.items():
        ranks[component][name] = adapter.layers[layer].rank
    settings = {
        key: value
        for component in sorted(ranks)
        for key, value in _diffusers_lora_settings(component, ranks[component])
    }
    metadata = {**output.metadata, SETTINGS_KEY: json.dumps(settings, sort_keys=True)}
    with write_safetensors(path, [name + suffix for name in names.values() for suffix in suffixes], metadata) as stream:
        pairs = {layer: (name + suffixes[0], name + suffixes[1]) for layer, name in names.items()}
        write_factors(stream, output, pairs, folds_scaling=True)


def _diffusers_weights_file(path: Path) -> Path:
    return path / WEIGHTS_NAME if path.is_dir() and not (path / CONFIG_NAME).exists() else path


def _is_peft_or_kohya_name(name: str) -> bool:
    """Whether a name is one of PEFT's folders or of kohya's files."""
    return name.startswith((PREFIX, "lora_unet_", "lora_te", "lora_transformer_"))


def _diffusers_layer_name(found: re.Match[str]) -> str:
    """The layer's name in its model, from the name of a factor."""
    layer = _clean_diffusers_name(found[1])
    if found[2] == "_":  # to_q_lora: a processor's part that stands for the layer
        layer = re.sub(r"\.to_out$", ".to_out.0", layer)
        layer = re.sub(r"\.self_attn\.to_(q|k|v|out)(\.0)?$", r".self_attn.\1_proj", layer)
    return layer


def _clean_diffusers_name(name: str) -> str:
    return name.replace(".processor.", ".")


def _read_diffusers_settings(path: Path, text: str | None) -> dict[str, AdapterConfig]:
    """Each component's settings, by its name; empty where the header has none."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OsrmError(
            f"{path}: {SETTINGS_KEY} of its header cannot be read: {error}", "save the file again"
        ) from None
    by_component: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in values.items() if isinstance(values, dict) else ():
        component, name = split_component(key)
        by_component[component or ""][name] = value
    return {name: parse_adapter_config(path, {"peft_type": "LORA", **own}) for name, own in by_component.items()}


def _make_diffusers_contents(
    path: Path,
    factors: Mapping[str, Mapping[str, TensorLocation]],
    alphas: Mapping[str, float],
    settings: Mapping[str, AdapterConfig],
) -> AdapterContents:
    split = {layer: split_component(layer) for layer in factors}
    inferred = infer_component(name for component, name in split.values() if component is None)
    full = {layer: f"{part or inferred}.{name}" if part or inferred else name for layer, (part, name) in split.items()}
    short = shorten_names(full.values())
    names = {layer: short[full[layer]] for layer in factors}
    ranks, scaled = {}, {}
    for layer, held in factors.items():
        component, name = split_component(full[layer])
        own = settings.get(component or "") or settings.get("")
        rank = ranks[names[layer]] = held[FACTORS[False][0]].shape[0]
        if own and adapter_layer_rank(own, name) != rank:
            raise OsrmError(f"{path}: {layer} has rank {rank}, its settings say {adapter_layer_rank(own, name)}")
        stated = plain_alpha(own, name, rank) if own else float(rank)
        scaled[names[layer]] = alphas.get(layer, stated)
    if unused := alphas.keys() - factors.keys():
        raise OsrmError(f"{path}: {min(unused)} has an alpha and no factors", "save the file again")
    tensors = {PREFIX + names[layer] + suffix: held for layer, pair in factors.items() for suffix, held in pair.items()}
    return AdapterContents(make_adapter_config(ranks, scaled), tensors)


def _diffusers_lora_settings(component: str, ranks: Mapping[str, int]) -> list[tuple[str, Any]]:
    """The settings with which diffusers builds these ranks at a scaling of 1."""
    usual = max(ranks.values(), key=list(ranks.values()).count)
    exceptions = {exact_layer_pattern(layer): rank for layer, rank in ranks.items() if rank != usual}
    values = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": exceptions,
        "alpha_pattern": exceptions,
        "target_modules": sorted(ranks),
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
    }
    return [(f"{component}.{key}", value) for key, value in values.items()]
