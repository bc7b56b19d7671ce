"""A linear map that leads a merged model's representation back to the single model's, folded into the task's head.

Fitted by ridge regression on unlabelled examples. Compare Representation Surgery (arXiv:2402.02705), which adds a
module instead.
"""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError

STRENGTHS = torch.logspace(-4, 4, 33, dtype=torch.float64)  # times the mean squared singular value
PRIORS = (1.0, 0.0)
ROUNDING = 1e-10  # mean squared difference, relative to the representations', that float32 explains


@dataclass(frozen=True)
class Map:
    """``z -> z @ M + shift`` for rows ``z`` ``(n, d)``.

    Attributes:
        M: ``(d, d)``.
        shift: ``(d,)``; ``None`` for a map without an intercept.
        strength: Ridge penalty that was chosen.
        prior: What ``M`` shrinks to: 1 the identity, 0 zero.
        error: Mean squared leave-one-out error of the map.
        before: Mean squared difference without any map.
    """

    M: torch.Tensor
    shift: torch.Tensor | None
    strength: float
    prior: float
    error: float
    before: float

    @property
    def helps(self) -> bool:
        """Whether examples that were left out come closer than without any map."""
        return self.error < self.before


def fit(merged: torch.Tensor, single: torch.Tensor, intercept: bool = True) -> Map:
    """The ridge map with the least leave-one-out error.

    ``min ||Z M + shift - Y||^2 + strength ||M - prior I||^2``, the shift unpenalised. All strengths and both priors are
    compared in closed form: the residual of a left-out example is its residual divided by one minus its leverage. Where
    the two differ by no more than rounding, the map is the identity.

    Args:
        merged: Pooled representations ``Z`` of the merged model, ``(n, d)``.
        single: Pooled representations ``Y`` of the single adapter for the same examples, ``(n, d)``.
        intercept: Whether there is a shift; a head without a bias cannot take one up.

    Raises:
        OsrmError: If the shapes differ or there are fewer than three examples.
    """
    if merged.shape != single.shape or merged.ndim != 2 or len(merged) < 3:
        raise OsrmError(
            f"representations of shape {tuple(merged.shape)} and {tuple(single.shape)} do not make a calibration",
            "expected two equal shapes (examples, width) with at least three examples",
        )
    Z, Y = merged.double(), single.double()
    before = float((Y - Z).square().mean())
    if before <= ROUNDING * float(Y.square().mean()):
        none = torch.zeros_like(Y[0]) if intercept else None
        return Map(torch.eye(Z.shape[1], dtype=Z.dtype), none, 0.0, 1.0, before, before)
    inputs, targets = (Z - Z.mean(dim=0), Y - Y.mean(dim=0)) if intercept else (Z, Y)
    U, values, Vh = torch.linalg.svd(inputs, full_matrices=False)
    scale = float(values.square().mean()) or 1.0
    error, strength, prior = min(
        (
            leave_one_out(U, values, targets - prior * inputs, float(strength) * scale, intercept),
            strength * scale,
            prior,
        )
        for prior in PRIORS
        for strength in STRENGTHS.tolist()
    )
    gain = (values / (values.square() + strength))[:, None] * (U.T @ (targets - prior * inputs))
    M = prior * torch.eye(Z.shape[1], dtype=Z.dtype) + Vh.T @ gain
    shift = Y.mean(dim=0) - Z.mean(dim=0) @ M if intercept else None
    return Map(M, shift, strength, prior, error, before)


def leave_one_out(
    U: torch.Tensor, values: torch.Tensor, target: torch.Tensor, strength: float, intercept: bool = True
) -> float:
    """Mean squared leave-one-out error of ridge regression, in closed form.

    Args:
        U: Left singular vectors of the inputs, ``(n, q)``; centred ones, if there is an intercept.
        values: Their singular values, ``(q,)``.
        target: Targets ``(n, d)``, centred likewise.
        strength: Ridge penalty.
        intercept: Whether the regression has one.
    """
    kept = values.square() / (values.square() + strength)
    fitted = U @ (kept[:, None] * (U.T @ target))
    leverage = intercept / len(U) + (U.square() * kept).sum(dim=1)
    return float(((target - fitted) / (1 - leverage)[:, None]).square().mean())


def fold(found: Map, W: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Head ``(W', b')`` that gives on ``z`` what ``(W, b)`` gives on the mapped ``z``; exact, no layer added.

    Args:
        found: The map.
        W: The head's weight, ``(labels, d)``.
        b: The head's bias, ``(labels,)``, or ``None``; so is the new one, if the map has no shift.
    """
    wide = W.double()
    weight = (wide @ found.M.T).to(W.dtype)
    if found.shift is None:
        return weight, b
    bias = torch.zeros(len(W), dtype=torch.float64) if b is None else b.double()
    return weight, (bias + wide @ found.shift).to(W.dtype)
