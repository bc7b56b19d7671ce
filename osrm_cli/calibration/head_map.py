"""Fit a task's ridge map on a model in memory and fold it into the task's head; see ``ridge_map``.

The map acts on the input of the head's last linear layer, ``z`` in ``logits = W z + b``: ``classifier`` of BERT,
``classifier.out_proj`` of RoBERTa, ``classification_head.out_proj`` of T5, ``score`` of Llama and GPT-2. A ``dense``
layer before it could absorb the map as well, but the nonlinearity in between would distort the error that is minimized.

    name, layer = find_head_layer(model)
    single = backbone.representations(model, ...)          # the single adapter applied, with its head
    merged = backbone.representations(model, ...)          # the merged update applied, with the same head
    ridge_map = fit_head_map(layer, merged, single)
    head = calibrated_head(head, name, ridge_map)          # unchanged if the map does not improve it

The logits of the calibrated classifier on any examples are ``linear(representations, W', b')`` with the tensors of the
new head: scoring with and without calibration takes one pass.
"""

from collections.abc import Mapping

import torch

from osrm_cli.calibration.ridge_map import RidgeMap, fit_ridge_map, fold_into_head
from osrm_cli.errors import OsrmError


def fit_head_map(layer: torch.nn.Linear, merged: torch.Tensor, single: torch.Tensor) -> RidgeMap:
    """The map for a head. A shift, and the spread of a classifier's logits, are fitted only if the head has a bias.

    Args:
        layer: The head's last layer.
        merged: Representations of the merged model, ``(n, d)``.
        single: Representations of the single adapter for the same examples, ``(n, d)``.

    Raises:
        OsrmError: If there are fewer than three examples.
    """
    return fit_ridge_map(merged, single, layer.weight.detach().cpu(), intercept=layer.bias is not None)


def calibrated_head(head: Mapping[str, torch.Tensor], name: str, ridge_map: RidgeMap) -> dict[str, torch.Tensor]:
    """The head with the map folded in; the same head if the map does not improve it.

    Args:
        head: Tensors of the head by their name in the base model.
        name: Name of its last layer.
        ridge_map: The map.

    Raises:
        OsrmError: If ``head`` lacks that layer.
    """
    if f"{name}.weight" not in head:
        raise OsrmError(f"the head has no {name}.weight", f"its tensors: {', '.join(sorted(head)) or 'nothing'}")
    if not ridge_map.improves:
        return dict(head)
    weight, bias = fold_into_head(ridge_map, head[f"{name}.weight"], head.get(f"{name}.bias"))
    shift = {} if bias is None else {f"{name}.bias": bias}
    return {**head, f"{name}.weight": weight, **shift}
