"""A linear map that leads a merged model's representation back to the single model's, folded into the task's head.

Fitted by ridge regression on unlabelled examples. Compare Representation Surgery (arXiv:2402.02705), which adds a
module instead.

A regression draws what it cannot explain to the mean, and with it the decisions of a classifier to the class that is
most frequent. So a classifier's map is stretched about the mean by the factor, at most ``MOST_SPREAD``, that gives the
differences of its logits the spread that they have in the single model.
"""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError

STRENGTHS = torch.logspace(-4, 4, 33, dtype=torch.float64)  # times the mean squared singular value
PRIORS = (1.0, 0.0)
MOST_SPREAD = 2.0  # more would blow up what is mostly noise
ROUNDING = 1e-10  # mean squared difference, relative to the representations', that float32 explains


@dataclass(frozen=True)
class RidgeMap:
    """``z -> z @ M + shift`` for rows ``z`` ``(n, d)``.

    Attributes:
        M: ``(d, d)``.
        shift: ``(d,)``; ``None`` for a map without an intercept.
        strength: Ridge penalty that was chosen.
        prior: What ``M`` shrinks to: 1 the identity, 0 zero.
        spread: Factor by which the map is stretched about the mean.
        error: Mean squared leave-one-out error of the map, before it is stretched.
        before: Mean squared difference without any map.
    """

    M: torch.Tensor
    shift: torch.Tensor | None
    strength: float
    prior: float
    spread: float
    error: float
    before: float

    @property
    def improves(self) -> bool:
        """Whether examples that were left out come closer than without any map."""
        return self.error < self.before


def fit_ridge_map(
    merged: torch.Tensor, single: torch.Tensor, W: torch.Tensor | None = None, intercept: bool = True
) -> RidgeMap:
    """The ridge map with the least leave-one-out error.

    ``min ||Z M + shift - Y||^2 + strength ||M - prior I||^2``, the shift unpenalised. All strengths and both priors are
    compared in closed form: the residual of a left-out example is its residual divided by one minus its leverage. Where
    the two differ by no more than rounding, the map is the identity.

    Args:
        merged: Pooled representations ``Z`` of the merged model, ``(n, d)``.
        single: Pooled representations ``Y`` of the single adapter for the same examples, ``(n, d)``.
        W: The head's weight, ``(labels, d)``, to keep the spread of a classifier's logits.
        intercept: Whether there is a shift; a head without a bias cannot take one up, nor what stretching adds to it.

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
        return RidgeMap(torch.eye(Z.shape[1], dtype=Z.dtype), none, 0.0, 1.0, 1.0, before, before)
    inputs, targets = (Z - Z.mean(dim=0), Y - Y.mean(dim=0)) if intercept else (Z, Y)
    U, values, Vh = torch.linalg.svd(inputs, full_matrices=False)
    scale = float(values.square().mean()) or 1.0

    def left_out(strength: float, prior: float) -> torch.Tensor:
        return leave_one_out(U, values, targets - prior * inputs, strength * scale, intercept)

    choices = [(strength, prior) for prior in PRIORS for strength in STRENGTHS.tolist()]
    strength, prior = min(choices, key=lambda choice: float(left_out(*choice).square().mean()))
    residual = left_out(strength, prior)
    gain = (values / (values.square() + strength * scale))[:, None] * (U.T @ (targets - prior * inputs))
    factor = logit_spread_factor(targets, targets - residual, W.double()) if intercept and W is not None else 1.0
    M = factor * (prior * torch.eye(Z.shape[1], dtype=Z.dtype) + Vh.T @ gain)
    shift = Y.mean(dim=0) - Z.mean(dim=0) @ M if intercept else None
    return RidgeMap(M, shift, strength * scale, prior, factor, float(residual.square().mean()), before)


def leave_one_out(
    U: torch.Tensor, values: torch.Tensor, target: torch.Tensor, strength: float, intercept: bool = True
) -> torch.Tensor:
    """What ridge regression misses each example by if it is left out of the fit, in closed form, ``(n, d)``.

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
    residual: torch.Tensor = (target - fitted) / (1 - leverage)[:, None]
    return residual


def logit_spread_factor(wanted: torch.Tensor, found: torch.Tensor, W: torch.Tensor) -> float:
    """Factor, from 1 to ``MOST_SPREAD``, that gives the logits of ``found`` the spread of those of ``wanted``.

    What is the same for all classes decides nothing and does not count, so that for a single output the factor is 1.

    Args:
        wanted: Representations, centred, ``(n, d)``.
        found: What a map makes of left-out examples, ``(n, d)``.
        W: The head's weight, ``(labels, d)``.
    """
    differences = (W - W.mean(dim=0)).T
    ours, theirs = float((found @ differences).norm()), float((wanted @ differences).norm())
    return min(max(theirs / ours, 1.0), MOST_SPREAD) if ours > 0 else 1.0


def fold_into_head(
    found: RidgeMap, W: torch.Tensor, b: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
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
