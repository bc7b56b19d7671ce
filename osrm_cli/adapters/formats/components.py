"""The parts of a diffusion pipeline that one LoRA file may change, and to which of them a layer belongs."""

from collections.abc import Iterable, Mapping

from osrm_cli.errors import OsrmError

# As diffusers names them; ``diffusion_model`` is a transformer in its authors' own layout, with fused projections.
COMPONENTS = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3"),
    "diffusion_model",
)

# The first parts of names that tell a component where only one is adapted and the names do not begin with it.
_FIRST_PARTS = {
    "unet": (
        *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding"),
        *("encoder_hid_proj", "class_embedding"),
    ),
    "transformer": (
        *("transformer_blocks", "single_transformer_blocks", "context_embedder", "time_text_embed", "x_embedder"),
    ),
    "text_encoder": ("text_model", "text_projection"),
    "diffusion_model": ("double_blocks", "single_blocks"),
}


def split_component(layer: str) -> tuple[str | None, str]:
    """The component that a name begins with, if any, and the layer's name inside it."""
    first, dot, rest = layer.partition(".")
    return (first, rest) if dot and first in COMPONENTS else (None, layer)


def infer_component(layers: Iterable[str]) -> str | None:
    """The component of layers whose names do not begin with it; ``None`` where they fit none or several."""
    firsts = {layer.partition(".")[0] for layer in layers}
    fitting = [component for component, parts in _FIRST_PARTS.items() if firsts & set(parts)]
    return fitting[0] if len(fitting) == 1 else None


def shorten_names(layers: Iterable[str]) -> dict[str, str]:
    """Names of layers as they are in their own model, where one component alone is adapted.

    The names keep the component where there are several, or where nothing else would tell it.

    Args:
        layers: Names that begin with their component.

    Returns:
        The new name by the old.
    """
    split = {layer: split_component(layer) for layer in layers}
    components = {component for component, _ in split.values()}
    names = {layer: name for layer, (_, name) in split.items()}
    is_clear = len(components) == 1 and {infer_component(names.values())} == components
    return names if is_clear else {layer: layer for layer in split}


def assign_components(source: str, layers: Iterable[str], given: str | None) -> dict[str, tuple[str, str]]:
    """The component of each layer and the layer's name inside it.

    Args:
        source: The adapter, for errors.
        layers: Names in the adapter.
        given: The user's answer for layers whose names do not begin with a component.

    Raises:
        OsrmError: If a component is unknown, or neither the names nor the user tell it.
    """
    if given is not None and given not in COMPONENTS:
        raise OsrmError(f"unknown component '{given}', expected one of: {', '.join(COMPONENTS)}")
    split: Mapping[str, tuple[str | None, str]] = {layer: split_component(layer) for layer in layers}
    bare = [layer for layer, (component, _) in split.items() if component is None]
    inferred = given or (infer_component(bare) if bare else None)
    if bare and inferred is None:
        raise OsrmError(
            f"{source} does not tell which part of a pipeline {bare[0]} belongs to",
            f"give it with --component, one of: {', '.join(COMPONENTS)}",
        )
    return {layer: (component or str(inferred), name) for layer, (component, name) in split.items()}
