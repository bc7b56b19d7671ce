"""One name for a layer that adapters of several classes of model, or of several versions of it, call differently."""

from collections.abc import Callable, Mapping, Sequence

# How transformers 5 calls the parts of vision-language models, and how adapters of earlier versions call them.
_RENAMED = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("model.layers.", "model.language_model.layers."),
    ("visual.", "model.visual."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


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
    aligned = [{name: name for name in layers} for layers in names]
    changed = True
    while changed:  # an adapter may only fit one that has been renamed itself
        changed = False
        for layers in aligned:
            current = set(layers.values())
            # Layers of an adapter that shares names with this one are other layers.
            others = {name for other in aligned if current.isdisjoint(other.values()) for name in other.values()}
            if rename := _find_adapter_layer_renaming(current, others):
                layers.update({own: rename(name) for own, name in layers.items()})
                changed = True
    return aligned


def _find_adapter_layer_renaming(own: set[str], others: set[str]) -> Callable[[str], str] | None:
    if any(name != (new := _modern_layer_name(name)) and new in others for name in own):
        return _modern_layer_name
    prefixes = sorted({other.removesuffix(name) for name in own for other in others if other.endswith(f".{name}")})
    if len(prefixes) > 1:
        raise ValueError(f"its layers fit below {prefixes[0]!r} and below {prefixes[1]!r} of another adapter's model")
    return (lambda name: prefixes[0] + name) if prefixes else None


def _modern_layer_name(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in _RENAMED if name.startswith(old)), name)
