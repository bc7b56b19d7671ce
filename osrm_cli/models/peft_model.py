"""Models with adapters of PEFT, which does not check its settings: configuration, model, and the layers it makes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.layers import PREFIX
from osrm_cli.errors import OsrmError


def check_adapter_task_type(adapter: Adapter, expected: Sequence[str]) -> None:
    """Check what an adapter was trained for, if it says so.

    Raises:
        OsrmError: If it is for another kind of task.
    """
    kind = adapter.config.task_type
    if kind is not None and kind not in expected:
        raise OsrmError(
            f"{adapter.folder / CONFIG_NAME}: task_type is {kind}, expected {' or '.join(expected)}",
            "the adapter belongs to another kind of task: give the data that it was trained on with --data",
        )


def make_lora_config(adapter: Adapter) -> LoraConfig:
    """The configuration with which PEFT builds an adapter's layers.

    Args:
        adapter: The adapter; ``find_peft_model_layers`` compares its layers with those that PEFT has found.

    Raises:
        OsrmError: If it adapts stacked experts.
    """
    config = adapter.config
    if config.target_parameters:
        raise OsrmError(
            f"{adapter.folder} adapts parameters that stack experts, with which no model can be run here",
            "osrm merge and osrm convert take it; load the result with PEFT",
        )
    targets, rows = config.target_modules, config.token_indices
    tokens = list(rows) if isinstance(rows, tuple) else {module: list(own) for module, own in rows.items()}
    return LoraConfig(
        task_type=config.task_type,
        r=config.r,
        lora_alpha=config.r if config.lora_alpha is None else config.lora_alpha,  # type: ignore[arg-type] # 0.5 is used
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        target_modules=targets if isinstance(targets, str) else list(targets or adapter.layers),
        modules_to_save=list(config.modules_to_save) or None,
        trainable_token_indices=tokens or None,
        fan_in_fan_out=config.fan_in_fan_out,
        inference_mode=True,
    )


def find_peft_model_layers(model: torch.nn.Module, adapter: Adapter) -> dict[str, LoraLayer]:
    """The layers of a PEFT model that carry an adapter's factors, by their name in the base model.

    Raises:
        OsrmError: If they are not those that the adapter has factors for.
    """
    layers = {name.removeprefix(PREFIX): part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    if differing := sorted(layers.keys() ^ adapter.layers.keys()):
        problem = "the adapter has no factors" if differing[0] in layers else "the base model has no layer"
        raise OsrmError(f"{adapter.folder} does not fit its base model: {problem} for {differing[0]}")
    return layers


def make_peft_model(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """A model with an adapter's factors, and with what the adapter holds beside them."""
    config = make_lora_config(adapter)
    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[config.task_type] if config.task_type else PeftModel
    peft_model: PeftModel = kind(model, config)
    set_peft_model_state_dict(peft_model, adapter.state_dict())
    return peft_model


@contextmanager
def with_adapted_backbone(model: PreTrainedModel, peft_model: PeftModel, adapter: Adapter) -> Iterator[torch.nn.Module]:
    """Use a PEFT model, in float32 with its update added to the weights; the base is as before at the end."""
    layers = find_peft_model_layers(peft_model, adapter)
    uses = Counter(parameter for _, parameter in peft_model.named_parameters(remove_duplicate=False))
    weights = {}
    for layer in layers.values():
        own = dict(layer.get_base_layer().named_parameters(recurse=False)).get("weight")
        if own is not None and uses[own] == 1:  # a tied weight has another use, which the update does not change
            weights[layer] = own
    try:
        with restoring_model_weights(weights.values() if model.dtype == torch.float32 else []) as copies:
            if copies:  # in narrower types the sum would lose small updates
                for layer in weights:
                    layer.merge()
            yield peft_model.eval()
    finally:
        for _ in range(2 if adapter.config.token_indices else 1):  # trained rows may lie below an adapted layer
            peft_model.unload()


@contextmanager
def restoring_model_weights(weights: Iterable[torch.nn.Parameter]) -> Iterator[dict[torch.nn.Parameter, torch.Tensor]]:
    """Restore weights at the end; yields the copies."""
    copies = {weight: weight.detach().clone() for weight in weights}
    try:
        yield copies
    finally:
        with torch.no_grad():
            for weight, copy in copies.items():
                weight.copy_(copy)
