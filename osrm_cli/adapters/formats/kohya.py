"""LoRA files of kohya's scripts and ComfyUI: one file for UNet and text encoders, names with underscores for dots.

Each layer has ``lora_down`` (PEFT's A), ``lora_up`` (B) and ``alpha``, a number: the scaling is ``alpha / rank``.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from osrm_cli.adapters.formats.components import assign_components, infer_component, shorten_names
from osrm_cli.adapters.formats.contents import AdapterContents, AdapterOutput, make_adapter_config, read_alpha
from osrm_cli.adapters.formats.flat_names import flatten_layer_name, to_diffusers_unet, unflatten_layer_name
from osrm_cli.adapters.formats.single_file import check_only_linear_layers, has_lora_tensor, write_factors
from osrm_cli.adapters.layers import FACTORS, PREFIX, plain_alpha
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import TensorLocation, list_safetensors_headers, open_safetensors
from osrm_cli.storage.safetensors_writer import write_safetensors

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

# The longest prefix that fits counts.
_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
}
_PREFIXES = {
    "unet": "lora_unet_",
    "diffusion_model": "lora_unet_",
    "transformer": "lora_transformer_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}
_OTHER_KINDS = {
    "dora_scale": "DoRA, whose update is not B @ A alone",
    "lora_mid.weight": "LoCon with a third factor, lora_mid",
    "hada": "LoHa",
    "lokr": "LoKr",
    "diff": "a difference of whole weights",
}
_CONVERTIBLE = (_OTHER_KINDS["lora_mid.weight"], "LoHa", "LoKr")


def matches(path: Path) -> bool:
    """Whether it is a safetensors file whose tensors are named as kohya's scripts name them."""
    return path.is_file() and has_lora_tensor(
        path, lambda name: name.startswith(("lora_unet_", "lora_te", "lora_transformer_"))
    )


def read(path: Path) -> AdapterContents:
    """Read the headers and the alphas; a layer without one has its rank as alpha.

    Raises:
        OsrmError: If the file holds more than the two factors, or a name that cannot be read back.
    """
    parts: dict[str, dict[str, TensorLocation]] = defaultdict(dict)
    for stored, location in list_safetensors_headers([path]).items():
        flat, _, part = stored.partition(".")
        parts[flat][part] = location
    ranks, alphas, tensors = {}, {}, {}
    with open_safetensors(path) as file:
        for flat, held in parts.items():
            _check_kohya_parts(path, flat, held)
            layer = unflatten_kohya_name(path, flat)
            if layer in ranks:
                raise OsrmError(f"{path}: {flat} and another are both {layer}", "save the file again")
            tensors[layer] = held
            ranks[layer] = held[DOWN].shape[0]
            alphas[layer] = read_alpha(file, f"{flat}.{ALPHA}", path) if ALPHA in held else float(ranks[layer])
    names = shorten_names(ranks)
    config = make_adapter_config(
        {names[layer]: rank for layer, rank in ranks.items()}, {names[layer]: alpha for layer, alpha in alphas.items()}
    )
    suffix_a, suffix_b = FACTORS[False]
    locations = {}
    for layer, held in tensors.items():
        locations[PREFIX + names[layer] + suffix_a] = held[DOWN]
        locations[PREFIX + names[layer] + suffix_b] = held[UP]
    return AdapterContents(config, locations)


def write(path: Path, output: AdapterOutput) -> None:
    """Write the factors as they are, and each layer's alpha.

    Raises:
        OsrmError: If the adapter holds anything but factors, or a name that could not be read back.
    """
    adapter = output.adapter
    check_only_linear_layers(adapter, "kohya")
    components = assign_components(adapter.source, adapter.layers, output.component)
    # The scripts number the text encoders where there are several.
    several = {"text_encoder_2", "text_encoder_3"} & {component for component, _ in components.values()}
    prefixes = {**_PREFIXES, "text_encoder": "lora_te1_"} if several else _PREFIXES
    names = {layer: _flatten_kohya_name(adapter.source, prefixes, *own) for layer, own in components.items()}
    alphas = {layer: plain_alpha(adapter.config, layer, shape.rank) for layer, shape in adapter.layers.items()}
    metadata = {
        **output.metadata,
        **_kohya_network_metadata(Counter(s.rank for s in adapter.layers.values()), Counter(alphas.values())),
    }
    with write_safetensors(
        path, [f"{name}.{part}" for name in names.values() for part in (DOWN, UP, ALPHA)], metadata
    ) as stream:
        write_factors(stream, output, {layer: (f"{name}.{DOWN}", f"{name}.{UP}") for layer, name in names.items()})
        # Numbers last, so that each tensor starts at a multiple of its own width: float64 only where it must be.
        for layer, name in names.items():
            stream.add(f"{name}.{ALPHA}", _alpha_tensor(alphas[layer]))


def _check_kohya_parts(path: Path, flat: str, held: Mapping[str, TensorLocation]) -> None:
    for part in held:
        if part not in (DOWN, UP, ALPHA):
            kind = next((text for key, text in _OTHER_KINDS.items() if part.startswith(key)), "not a factor of LoRA")
            way = (
                "osrm convert makes plain LoRA of such a file"
                if kind in _CONVERTIBLE
                else "only plain LoRA can be read"
            )
            raise OsrmError(f"{path}: {flat}.{part} is {kind}", way)
    if missing := {DOWN, UP} - held.keys():
        raise OsrmError(f"{path}: {flat}.{missing.pop()} is missing", "save the file again")
    if ALPHA in held and held[ALPHA].shape not in ((), (1,)):
        raise OsrmError(f"{path}: {flat}.{ALPHA} has shape {held[ALPHA].shape}, expected a number")


def unflatten_kohya_name(path: Path, flat: str) -> str:
    """The layer's name with its dots, beginning with its component.

    Raises:
        OsrmError: If it holds a word that is not known.
    """
    for prefix, component in _COMPONENTS.items():
        if flat.startswith(prefix):
            with contextlib.suppress(ValueError):
                name = to_diffusers_unet(unflatten_layer_name(flat.removeprefix(prefix)))
                is_other = component == "unet" and infer_component([name]) != "unet"
                return f"{'diffusion_model' if is_other else component}.{name}"
    raise OsrmError(
        f"{path}: {flat} is not the name of a layer that is known here",
        "load it with diffusers, and save it with save_lora_weights: names with dots need not be known",
    )


def _flatten_kohya_name(source: str, prefixes: Mapping[str, str], component: str, name: str) -> str:
    if component not in prefixes:
        raise OsrmError(f"{source}: kohya's format has no place for {component}", "use --format diffusers")
    try:
        return prefixes[component] + flatten_layer_name(name)
    except ValueError as error:
        raise OsrmError(f"{source}: kohya's format cannot name a layer: {error}", "use --format diffusers") from None


def _kohya_network_metadata(ranks: Counter[int], alphas: Counter[float]) -> dict[str, str]:
    """What kohya's scripts record of the network in the header."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(*alphas) if len(alphas) == 1 else "Dynamic",
    }


def _alpha_tensor(alpha: float) -> torch.Tensor:
    """A number in float32 where that is exact, else in float64."""
    narrow = torch.tensor(alpha, dtype=torch.float32)
    return narrow if narrow.item() == alpha else torch.tensor(alpha, dtype=torch.float64)
