"""Target layers: PEFT's defaults, and the layers that a name selects."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from osrm_cli.adapters.layers import AdapterLayer
from osrm_cli.errors import OsrmError
from osrm_cli.models.classifier import LoadedModel, head_modules, load_without_weights

ALL_LINEAR = "all-linear"

# PEFT has no defaults for these; query and value as for its other encoders.
_FURTHER_DEFAULTS = {"mpnet": ["q", "v"], "distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}


def default_target_modules(model: PreTrainedModel) -> list[str]:
    """The layers that PEFT adapts by default in this architecture: query and value, mostly.

    Raises:
        OsrmError: If neither PEFT nor this table knows the architecture.
    """
    kind = model.config.model_type
    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind) or _FURTHER_DEFAULTS.get(kind)
    if not names:
        raise OsrmError(
            f"no default target layers are known for model type '{kind}'", "name them with --target-modules"
        )
    return list(names)


def find_target_layers(classifier: LoadedModel, names: Sequence[str]) -> dict[str, torch.nn.Module]:
    """Linear layers (and GPT-2's Conv1D) that PEFT would adapt for these target names, in the model's order.

    Args:
        classifier: The loaded model; its heads are never targets.
        names: PEFT's ``target_modules``; ``all-linear`` stands for every linear layer of the backbone.

    Raises:
        OsrmError: If no layer matches.
    """
    config = LoraConfig(target_modules=_target_module_pattern(names), modules_to_save=classifier.heads)
    linear = _linear_layers(classifier.model)
    matching = {name: module for name, module in linear.items() if check_target_module_exists(config, name)}
    if not matching:
        suffixes = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise OsrmError(f"no linear layer matches --target-modules {' '.join(names)}", f"names of layers: {suffixes}")
    return matching


def describe_target_layers(
    folder: Path, is_text: bool, names: Sequence[str] = ()
) -> tuple[dict[str, AdapterLayer], bool]:
    """The layers of a base model that these target names select, as an adapter of rank zero would have them.

    Args:
        folder: The base model, whose weights are not read.
        is_text: Whether it is to write text; otherwise it is a classifier.
        names: See ``find_target_layers``; none for PEFT's choice.

    Returns:
        The layers, and whether any of them stores its weight as ``(d_in, d_out)``.

    Raises:
        OsrmError: If the model cannot be built, no layer matches, or it has no default.
    """
    writers = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)
    classifiers = (AutoModelForSequenceClassification, AutoModelForSequenceClassification)
    model = load_without_weights(folder, writers if is_text else classifiers)
    loaded = LoadedModel(model, [] if is_text else head_modules(model))
    modules = find_target_layers(loaded, names or default_target_modules(model))
    layers = {}
    for name, module in modules.items():
        d_in, d_out = layer_widths(module)
        layers[name] = AdapterLayer(d_out, d_in, 0, 1.0, embedding=False)
    return layers, any(map(is_conv1d, modules.values()))


def as_target_modules(classifier: LoadedModel, names: Sequence[str], targets: Collection[str]) -> list[str]:
    """``target_modules`` that PEFT resolves to ``targets`` whether or not the adapter has heads.

    Returns ``names``, or the layers' full names where ``names`` would match a layer of a head too.
    """
    config = LoraConfig(target_modules=_target_module_pattern(names))
    matched = {name for name in _linear_layers(classifier.model) if check_target_module_exists(config, name)}
    return list(names) if list(names) != [ALL_LINEAR] and matched == set(targets) else list(targets)


def _target_module_pattern(names: Sequence[str]) -> str | list[str]:
    return ".*" if list(names) == [ALL_LINEAR] else list(names)


def _linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Every linear layer but a language model's own output layer, which PEFT leaves out as well."""
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = (pair for pair in model.named_modules() if isinstance(pair[1], torch.nn.Linear | Conv1D))
    return {name: module for name, module in linear if module is not output}


def layer_widths(layer: torch.nn.Module) -> tuple[int, int]:
    """``(d_in, d_out)`` of a linear layer; Conv1D stores its weight transposed."""
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features, layer.out_features  # a quantized weight has another shape
    weight = layer.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight")
    rows, columns = weight.shape
    return (rows, columns) if is_conv1d(layer) else (columns, rows)


def is_conv1d(layer: torch.nn.Module) -> bool:
    """Whether a layer stores its weight as ``(d_in, d_out)``, as GPT-2's do."""
    return isinstance(layer, Conv1D)
