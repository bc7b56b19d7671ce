"""Drift: how far training moved A from its start, apart from a rotation, which an adapter can undo in B."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Drift:
    """Relative Procrustes distance of A from its start.

    Attributes:
        overall: Root of the sum of squared distances over the sum of squared norms, all layers together.
        layers: The same for each layer.
    """

    overall: float
    layers: Mapping[str, float]


def distance(A_0: torch.Tensor, A: torch.Tensor) -> float:
    """``min ||R A_0 - A||_F`` over orthogonal ``R`` ``(r, r)``; both ``(r, d_in)``.

    The best ``R`` is the orthogonal polar factor of ``A A_0^T``.
    """
    A_0, A = A_0.double(), A.double()
    U, _, Vh = torch.linalg.svd(A @ A_0.T)
    return float((U @ Vh @ A_0 - A).norm())


def drift(starts: Mapping[str, torch.Tensor], ends: Mapping[str, torch.Tensor]) -> Drift:
    """``distance`` over ``||A_0||_F`` for each layer, and overall.

    Args:
        starts: A of each layer before training, ``(r, d_in)``.
        ends: A of the same layers after training.
    """
    moved = {layer: distance(A_0, ends[layer]) for layer, A_0 in starts.items()}
    norms = {layer: float(A_0.double().norm()) for layer, A_0 in starts.items()}
    return Drift(
        overall=_ratio(math.hypot(*moved.values()), math.hypot(*norms.values())),
        layers={layer: _ratio(moved[layer], norms[layer]) for layer in starts},
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
