"""Build a trainable PEFT model from an initialized adapter, and save the trained adapter as a PEFT folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import PREFIX
from osrm_cli.adapters.writer import write_adapter
from osrm_cli.errors import OsrmError, library_errors
from osrm_cli.linalg import subspaces
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.models.classifier import LoadedModel
from osrm_cli.models.peft_model import find_peft_model_layers, make_lora_config
from osrm_cli.storage.records import BaseModelId


def to_trainable_peft_model(classifier: LoadedModel, start: Adapter, freeze: str | None) -> PeftModel:
    """Attach an initialized adapter to a classifier: its factors and the heads are trained, the rest is frozen.

    Args:
        classifier: The base model; its heads are new, unless the adapter includes them.
        start: The initialized adapter; determines layers and scaling.
        freeze: ``A`` or ``B`` to freeze that factor.

    Raises:
        OsrmError: If the adapter does not fit the model.
    """
    _load_start_heads(classifier, start)
    with library_errors(f"{start.folder} has settings that PEFT refuses"):
        config = make_lora_config(start)
    config.modules_to_save = list(classifier.heads)  # PEFT adds its own guesses to the list
    config.inference_mode = False
    config.base_model_name_or_path = classifier.model.name_or_path  # PEFT warns about other names
    with library_errors(f"{start.folder} does not fit its base model"):
        model: PeftModel = get_peft_model(classifier.model, config)
    for name, layer in find_peft_model_layers(model, start).items():
        _load_start_factors(layer, name, start, freeze)
    return model


def _load_start_heads(classifier: LoadedModel, start: Adapter) -> None:
    if whole := [*start.module_tensors(), *start.trained_rows()]:
        raise OsrmError(
            f"{start.folder} holds values of the base model's {whole[0]}, which osrm train cannot go on with",
            "begin with a folder of osrm init",
        )
    heads = start.head_tensors()
    with library_errors(f"{start.folder}: its head is for another task"):
        unexpected = classifier.model.load_state_dict(heads, strict=False).unexpected_keys
    if unexpected:
        raise OsrmError(f"{start.folder} contains {unexpected[0]}, which its base model does not have")


def _load_start_factors(layer: LoraLayer, name: str, start: Adapter, freeze: str | None) -> None:
    if start.layers[name].embedding:
        raise OsrmError(f"{start.folder} adapts the embedding {name}, expected linear layers only")
    factors = start.lora_factors(name)
    for letter, factor in (("A", factors.A), ("B", factors.B)):
        weight = getattr(layer, f"lora_{letter}")["default"].weight
        if weight.shape != factor.shape:
            raise OsrmError(
                f"{start.folder}: lora_{letter} of {name} is {tuple(factor.shape)}, its base model needs "
                f"{tuple(weight.shape)}",
                "give the right base model with --model",
            )
        with torch.no_grad():
            weight.copy_(factor)
        weight.requires_grad_(letter != freeze)


def measure_adapter_drift(model: PeftModel, start: Adapter) -> subspaces.ProcrustesDrift:
    """Distance of A from its initialization, up to a rotation of its rows."""
    trained = get_peft_model_state_dict(model)
    starts = {layer: start.lora_factors(layer).A for layer in start.layers}
    return subspaces.relative_procrustes_distances(
        starts, {layer: trained[f"{PREFIX}{layer}.lora_A.weight"].cpu() for layer in starts}
    )


def save_trained_adapter(
    model: PeftModel, start: Adapter, base: BaseModelId, heads: Sequence[str], folder: Path
) -> None:
    """Write the trained adapter with its heads as a plain PEFT folder."""
    state = {name.removeprefix(PREFIX): tensor.cpu() for name, tensor in get_peft_model_state_dict(model).items()}
    updates = {
        layer: LowRank(state.pop(f"{layer}.lora_B.weight"), state.pop(f"{layer}.lora_A.weight"))
        for layer in start.layers
    }
    config = replace(start.config, base_model=base.name, revision=base.revision, modules_to_save=tuple(heads))
    write_adapter(folder, updates, config, heads=state)
