"""Names of adapted layers: what wrappers add to a tensor's name, and one layer under the names of several models."""

import re
from collections.abc import Callable, Mapping, Sequence

PREFIX = "base_model.model."

# How transformers 5 calls the parts of vision-language models, and how adapters of earlier versions call them.
_RENAMED = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("model.layers.", "model.language_model.layers."),
    ("visual.", "model.visual."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def plain_tensor_name(stored: str) -> str:
    """The name that PEFT gives a tensor, without what compiling, data-parallel training or other wrappers add.

    Args:
        stored: The name in the file, such as ``module.base_model.model._orig_mod.query.lora_A.default.weight``.
    """
    name = stored.replace("_orig_mod.", "").removeprefix("module.")
    name = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)
    name = re.sub(r"\.(lora_embedding_[AB])\.[^.]+$", r".\1", name)
    while name.startswith(2 * PREFIX):
        name = name.removeprefix(PREFIX)
    return name if name.startswith(PREFIX) or ".lora_" not in name else PREFIX + name


def align_layer_names(names: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    """One name for a layer that adapters know by several: those of the model whose names are longest, or newest.

    An adapter of the bare backbone calls ``layers.0.query`` what one of the model with a head calls
    ``model.layers.0.query``.

    Args:
        names: The layers of each adapter.

    Returns:
        For each adapter, the common name by its own.

    Raises:
        ValueError: If an adapter's names fit several places of another adapter's model.
    """
    aligned = []
    for own in names:
        others = {name for layers in names if layers is not own for name in layers}
        rename = _find_renaming(own, others) if not others & own.keys() else None
        aligned.append({name: rename(name) if rename else name for name in own})
    return aligned


def _find_renaming(own: Mapping[str, object], others: set[str]) -> Callable[[str], str] | None:
    renamed = {name: _modern_name(name) for name in own}
    if others & {new for name, new in renamed.items() if new != name}:
        return _modern_name
    prefixes = sorted({other.removesuffix(name) for name in own for other in others if other.endswith(f".{name}")})
    if len(prefixes) > 1:
        raise ValueError(f"its layers fit below {prefixes[0]!r} and below {prefixes[1]!r} of another adapter's model")
    return (lambda name: prefixes[0] + name) if prefixes else None


def _modern_name(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in _RENAMED if name.startswith(old)), name)
