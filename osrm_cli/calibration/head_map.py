"""Lead a merged classifier back to the single adapter's, on a model in memory: see ``maths.calibration``.

The map acts on the input of the head's last linear layer, ``z`` in ``logits = W z + b``: ``classifier`` of BERT,
``classifier.out_proj`` of RoBERTa, ``classification_head.out_proj`` of T5, ``score`` of Llama and GPT-2. It could go
into a ``dense`` before as well, but the nonlinearity in between would bend the error that is made small.

    name, layer = head_layer(model)
    single = representations(model, ...)                   # the single adapter applied, with its head
    merged = representations(model, ...)                   # the merged update applied, with the same head
    found = fit(layer, merged, single)
    head = calibrated(head, name, found)                   # unchanged if the map does not help

The logits of the calibrated classifier on any examples are ``linear(representations, W', b')`` with the tensors of the
new head: scoring with and without calibration takes one pass.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from osrm_cli.calibration import ridge_map as calibration
from osrm_cli.calibration.ridge_map import Map
from osrm_cli.errors import OsrmError
from osrm_cli.models import backbone as scoring


def head_layer(model: torch.nn.Module) -> tuple[str, torch.nn.Linear]:
    """The linear layer of a sequence classifier that puts out its logits, and its name in the base model.

    Args:
        model: A classifier of transformers, such as ``scoring.headed`` yields, or PEFT's wrapper of one, such as
            ``scoring.adapted`` yields. Of a module that PEFT keeps twice, the adapter's own counts.

    Raises:
        OsrmError: If the head does not end in a plain linear layer.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = [f"{name}." for name, module in inner.named_modules() if isinstance(module, LoraLayer)]
    found = [
        (name, module)
        for name, module in inner.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.startswith((f"{inner.base_model_prefix}.", *adapted))
        and "original_module" not in name.split(".")
    ]
    if not found or found[-1][1].out_features != inner.config.num_labels:
        raise OsrmError(
            f"the head of {type(inner).__name__} does not end in a plain linear layer of {inner.config.num_labels} "
            "outputs",
            "such a head cannot be calibrated; merge without --calibrate",
        )
    name, layer = found[-1]
    return re.sub(r"\.modules_to_save\.[^.]+", "", name), layer


def representations(
    model: torch.nn.Module,
    encodings: Sequence[scoring.Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """What the head's last linear layer is fed with, at the position that the model pools.

    Args:
        model: A classifier, see ``head_layer``, in evaluation mode.
        encodings: From ``batches.tokenise``.
        tokenizer: Knows how to pad.
        device: Where the model lies.
        batch_size: Examples in a batch.
        advance: Called with the number of examples that are done.

    Returns:
        ``(n, d)``, float32, in the order of ``encodings``.
    """
    _, layer = head_layer(model)
    # With its last layer put out of the way, the model itself pools what would have been the logits.
    handle = layer.register_forward_hook(lambda _module, args, _output: args[0])
    try:
        return scoring.logits(model, encodings, tokenizer, device, batch_size, advance)
    finally:
        handle.remove()


def fit(layer: torch.nn.Linear, merged: torch.Tensor, single: torch.Tensor) -> Map:
    """The map for a head: with a shift, and a classifier's spread kept, where the head has a bias; else without both.

    Args:
        layer: The head's last layer.
        merged: Representations of the merged model, ``(n, d)``.
        single: Representations of the single adapter for the same examples, ``(n, d)``.

    Raises:
        OsrmError: If there are fewer than three examples.
    """
    return calibration.fit(merged, single, layer.weight.detach().cpu(), intercept=layer.bias is not None)


def calibrated(head: Mapping[str, torch.Tensor], name: str, found: Map) -> dict[str, torch.Tensor]:
    """The head with the map folded in; the same head where the map does not help.

    Args:
        head: Tensors of the head by their name in the base model.
        name: Of its last layer.
        found: The map.

    Raises:
        OsrmError: If ``head`` lacks that layer.
    """
    if f"{name}.weight" not in head:
        raise OsrmError(f"the head holds no {name}.weight", f"it holds: {', '.join(sorted(head)) or 'nothing'}")
    if not found.helps:
        return dict(head)
    weight, bias = calibration.fold(found, head[f"{name}.weight"], head.get(f"{name}.bias"))
    shift = {} if bias is None else {f"{name}.bias": bias}
    return {**head, f"{name}.weight": weight, **shift}
