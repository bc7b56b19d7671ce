"""A linear map that leads a merged model's representation back to the single model's, folded into the task's head.

Fitted by ridge regression on unlabelled examples. Compare Representation Surgery (arXiv:2402.02705), which adds a
module instead.
"""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError

STRENGTHS = torch.logspace(-4, 4, 33, dtype=torch.float64)  # times the mean squared singular value
PRIORS = (1.0, 0.0)


@dataclass(frozen=True)
class Map:
    """``z -> z @ M + shift`` for rows ``z`` ``(n, d)``.

    Attributes:
        M: ``(d, d)``.
        shift: ``(d,)``.
        strength: Ridge penalty that was chosen.
        prior: What ``M`` shrinks to: 1 the identity, 0 zero.
        error: Mean squared leave-one-out error of the map.
        before: Mean squared difference without any map.
    """

    M: torch.Tensor
    shift: torch.Tensor
    strength: float
    prior: float
    error: float
    before: float


def fit(merged: torch.Tensor, single: torch.Tensor) -> Map:
    """The ridge map with the least leave-one-out error.

    ``min ||Z M + shift - Y||^2 + strength ||M - prior I||^2``, the shift unpenalised. All strengths and both priors are
    compared in closed form: the residual of a left-out example is its residual divided by one minus its leverage.

    Args:
        merged: Pooled representations ``Z`` of the merged model, ``(n, d)``.
        single: Pooled representations ``Y`` of the single adapter for the same examples, ``(n, d)``.

    Raises:
        OsrmError: If the shapes differ or there are fewer than three examples.
    """
    if merged.shape != single.shape or merged.ndim != 2 or len(merged) < 3:
        raise OsrmError(
            f"representations of shape {tuple(merged.shape)} and {tuple(single.shape)} do not make a calibration",
            "expected two equal shapes (examples, width) with at least three examples",
        )
    Z, Y = merged.double(), single.double()
    centred = Z - Z.mean(dim=0)
    U, values, Vh = torch.linalg.svd(centred, full_matrices=False)
    scale = float(values.square().mean()) or 1.0
    best = min(
        (leave_one_out(U, values, _target(Z, Y, prior), float(strength) * scale), float(strength) * scale, prior)
        for prior in PRIORS
        for strength in STRENGTHS
    )
    error, strength, prior = best
    gain = (values / (values.square() + strength))[:, None] * (U.T @ _target(Z, Y, prior))
    M = prior * torch.eye(Z.shape[1], dtype=Z.dtype) + Vh.T @ gain
    shift = Y.mean(dim=0) - Z.mean(dim=0) @ M
    return Map(M, shift, strength, prior, error, float((Y - Z).square().mean()))


def leave_one_out(U: torch.Tensor, values: torch.Tensor, target: torch.Tensor, strength: float) -> float:
    """Mean squared leave-one-out error of ridge regression with an intercept, in closed form.

    Args:
        U: Left singular vectors of the centred inputs, ``(n, q)``.
        values: Their singular values, ``(q,)``.
        target: Centred targets ``(n, d)``.
        strength: Ridge penalty.
    """
    kept = values.square() / (values.square() + strength)
    fitted = U @ (kept[:, None] * (U.T @ target))
    leverage = 1 / len(U) + (U.square() * kept).sum(dim=1)
    return float(((target - fitted) / (1 - leverage)[:, None]).square().mean())


def fold(found: Map, W: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Head ``(W', b')`` that gives on ``z`` what ``(W, b)`` gives on the mapped ``z``; exact, no layer added.

    Args:
        found: The map.
        W: The head's weight, ``(labels, d)``.
        b: The head's bias, ``(labels,)``, or ``None``.
    """
    wide = W.double()
    bias = torch.zeros(len(W), dtype=torch.float64) if b is None else b.double()
    return (wide @ found.M.T).to(W.dtype), (bias + wide @ found.shift).to(W.dtype)


def _target(Z: torch.Tensor, Y: torch.Tensor, prior: float) -> torch.Tensor:
    target = Y - prior * Z
    return target - target.mean(dim=0)
