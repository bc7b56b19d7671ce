"""Files of LyCORIS: kohya's names with the tensors of LoHa, LoKr or of LoCon's third factor, layer by layer."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.formats import kohya
from osrm_cli.adapters.formats.components import shorten_names
from osrm_cli.adapters.layers import AdapterLayer, layer_name_sort_key
from osrm_cli.conversion.kinds import KINDS, Tensors, Update
from osrm_cli.conversion.plain_lora import PlainSource
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.storage.input_files import TensorLocation, list_safetensors_headers, read_safetensors_tensor

_PARTS = {"LoHa": "hada_", "LoKr": "lokr_", "LoCon": "lora_mid"}
_THREE_BY_THREE = ("conv1", "conv2", "conv", "conv_in", "conv_out")  # of Stable Diffusion's UNets


def find_lycoris(path: Path) -> str | None:
    """The kind of the file's first layer that is not two factors; ``None`` where there is none, or it is no such file.

    Raises:
        OsrmError: If the file is damaged.
    """
    if not (path.is_file() and kohya.matches(path)):
        return None
    parts = [name.partition(".")[2] for name in list_safetensors_headers([path])]
    return next((kind for kind, start in _PARTS.items() if any(part.startswith(start) for part in parts)), None)


def open_lycoris(path: Path) -> PlainSource:
    """Open such a file.

    Raises:
        OsrmError: If a layer holds other tensors, or its name cannot be read back.
    """
    parts: dict[str, dict[str, TensorLocation]] = defaultdict(dict)
    for stored, location in list_safetensors_headers([path]).items():
        flat, _, part = stored.partition(".")
        parts[flat][part.removesuffix(".weight")] = location
    full = {flat: kohya.unflatten_kohya_name(path, flat) for flat in parts}
    short = shorten_names(full.values())
    held = {short[full[flat]]: tensors for flat, tensors in parts.items()}
    layers = sorted(held, key=layer_name_sort_key)
    config = AdapterConfig(None, target_modules=tuple(layers))
    return PlainSource(config, layers, {}, partial(_lycoris_update, path, held), {}, torch.float32)


def _lycoris_update(
    path: Path, held: Mapping[str, Mapping[str, TensorLocation]], layer: str
) -> tuple[LowRank, AdapterLayer]:
    tensors = {name: read_safetensors_tensor(location) for name, location in held[layer].items()}
    alpha = tensors.pop("alpha", None)
    kind = next((each for each in _PARTS if all(name.startswith(_PARTS[each]) for name in tensors)), None)
    try:
        if kind == "LoHa":
            rank: int | None = tensors["hada_w1_b"].shape[0]
            make = KINDS["LOHA"].update
        elif kind == "LoKr":
            # Where both matrices are whole there is no rank, and LyCORIS does not scale.
            rank = next((tensors[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors), None)
            make = KINDS["LOKR"].update
        else:
            rank, make = tensors["lora_down"].shape[0], _locon_update
            if other := tensors.keys() - {"lora_down", "lora_up", "lora_mid"}:
                raise ValueError(f"{min(other)} is not a part of it")
        scaling = float(alpha) / rank if alpha is not None and rank else 1.0
        delta, kernel = make(tensors, scaling)
    except (ValueError, KeyError, RuntimeError) as error:
        raise OsrmError(f"{path}: {layer} is not LoRA, LoHa or LoKr: {error}", "save the file again") from None
    if not kernel and layer.rpartition(".")[2] in _THREE_BY_THREE and delta.shape[1] % 9 == 0:
        kernel = (3, 3)
    return delta, AdapterLayer(*delta.shape, delta.rank, 1.0, embedding=False, kernel=tuple(kernel))


def _locon_update(tensors: Tensors, scaling: float) -> Update:
    """``s up down``, or with the kernel in a factor between them: ``sum_ij up_i mid_ij down_j``."""
    up, down = tensors["lora_up"].double().flatten(1), tensors["lora_down"].double()
    if "lora_mid" not in tensors:
        return LowRank(scaling * up, down.flatten(1)), tuple(down.shape[2:])
    mid = tensors["lora_mid"].double()
    return LowRank(scaling * up, torch.einsum("ijkl,jc->ickl", mid, down.flatten(1)).flatten(1)), tuple(mid.shape[2:])
