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

from collections.abc import Mapping

import torch

from osrm_cli.calibration.ridge_map import RidgeMap, fit_ridge_map, fold_into_head
from osrm_cli.errors import OsrmError


def fit_head_map(layer: torch.nn.Linear, merged: torch.Tensor, single: torch.Tensor) -> RidgeMap:
    """The map for a head: with a shift, and a classifier's spread kept, where the head has a bias; else without both.

    Args:
        layer: The head's last layer.
        merged: Representations of the merged model, ``(n, d)``.
        single: Representations of the single adapter for the same examples, ``(n, d)``.

    Raises:
        OsrmError: If there are fewer than three examples.
    """
    return fit_ridge_map(merged, single, layer.weight.detach().cpu(), intercept=layer.bias is not None)


def calibrated_head(head: Mapping[str, torch.Tensor], name: str, found: RidgeMap) -> dict[str, torch.Tensor]:
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
    if not found.improves:
        return dict(head)
    weight, bias = fold_into_head(found, head[f"{name}.weight"], head.get(f"{name}.bias"))
    shift = {} if bias is None else {f"{name}.bias": bias}
    return {**head, f"{name}.weight": weight, **shift}
