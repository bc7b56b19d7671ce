"""A linear map from a merged model's representation to the single adapter's, folded into the task's head.

It is fitted by ridge regression on unlabelled examples. Compare Representation Surgery (arXiv:2402.02705), which adds a
module instead.

Regression shrinks unexplained variation to the mean, and thereby a classifier's decisions to the class that is
most frequent. So a classifier's map is stretched about the mean by the factor, at most ``MAX_SPREAD``, that gives the
differences of its logits the spread that they have in the single model.
"""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError

STRENGTHS = torch.logspace(-4, 4, 33, dtype=torch.float64)  # times the mean squared singular value
PRIORS = (1.0, 0.0)
MAX_SPREAD = 2.0  # a larger factor would mostly amplify noise
ROUNDING = 1e-10  # mean squared difference, relative to the representations', that float32 explains


@dataclass(frozen=True)
class RidgeMap:
    """``z -> z @ M + shift`` for rows ``z`` ``(n, d)``.

    Attributes:
        M: ``(d, d)``.
        shift: ``(d,)``; ``None`` for a map without an intercept.
        strength: Ridge penalty that was chosen.
        prior: Target of the shrinkage of ``M``: 1 the identity, 0 zero.
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
        """Whether the map reduces the error on held-out examples."""
        return self.error < self.before


def fit_ridge_map(
    merged: torch.Tensor, single: torch.Tensor, W: torch.Tensor | None = None, intercept: bool = True
) -> RidgeMap:
    """The ridge map with the smallest leave-one-out error.

    ``min ||Z M + shift - Y||^2 + strength ||M - prior I||^2``, the shift unpenalised. All strengths and both priors are
    compared in closed form: the residual of a left-out example is its residual divided by one minus its leverage. Where
    the two differ by no more than rounding, the map is the identity.

    Args:
        merged: Pooled representations ``Z`` of the merged model, ``(n, d)``.
        single: Pooled representations ``Y`` of the single adapter for the same examples, ``(n, d)``.
        W: The head's weight, ``(labels, d)``, to match the spread of a classifier's logits.
        intercept: Whether there is a shift; a head without a bias cannot represent one, nor the offset of stretching.

    Raises:
        OsrmError: If the shapes differ, there are fewer than three examples, or an entry is not finite.
    """
    if merged.shape != single.shape or merged.ndim != 2 or len(merged) < 3:
        raise OsrmError(
            f"representations of shape {tuple(merged.shape)} and {tuple(single.shape)} cannot be calibrated",
            "expected two equal shapes (examples, width) with at least three examples",
        )
    if not (torch.isfinite(merged).all() and torch.isfinite(single).all()):
        raise OsrmError(
            "NaN or infinity in the representations: weights of the base model, the merge or an adapter are damaged",
            "osrm verify FOLDER names files that have changed",
        )
    Z, Y = merged.double(), single.double()
    error_without_map = float((Y - Z).square().mean())
    if error_without_map <= ROUNDING * float(Y.square().mean()):
        shift = torch.zeros_like(Y[0]) if intercept else None
        return RidgeMap(
            torch.eye(Z.shape[1], dtype=Z.dtype), shift, 0.0, 1.0, 1.0, error_without_map, error_without_map
        )
    inputs, targets = (Z - Z.mean(dim=0), Y - Y.mean(dim=0)) if intercept else (Z, Y)
    U, values, Vh = torch.linalg.svd(inputs, full_matrices=False)
    scale = float(values.square().mean()) or 1.0

    def residuals(strength: float, prior: float) -> torch.Tensor:
        return leave_one_out(U, values, targets - prior * inputs, strength * scale, intercept)

    choices = [(strength, prior) for prior in PRIORS for strength in STRENGTHS.tolist()]
    strength, prior = min(choices, key=lambda choice: float(residuals(*choice).square().mean()))
    residual = residuals(strength, prior)
    gain = (values / (values.square() + strength * scale))[:, None] * (U.T @ (targets - prior * inputs))
    factor = calibrated_spread_factor(targets, targets - residual, W.double()) if intercept and W is not None else 1.0
    M = factor * (prior * torch.eye(Z.shape[1], dtype=Z.dtype) + Vh.T @ gain)
    shift = Y.mean(dim=0) - Z.mean(dim=0) @ M if intercept else None
    return RidgeMap(M, shift, strength * scale, prior, factor, float(residual.square().mean()), error_without_map)


def leave_one_out(
    U: torch.Tensor, values: torch.Tensor, target: torch.Tensor, strength: float, intercept: bool = True
) -> torch.Tensor:
    """Residual of each example under the ridge regression without it, in closed form, ``(n, d)``.

    Args:
        U: Left singular vectors of the inputs, ``(n, q)``; of the centred inputs if there is an intercept.
        values: Their singular values, ``(q,)``.
        target: Targets ``(n, d)``, centred if there is an intercept.
        strength: Ridge penalty.
        intercept: Whether the regression has one.
    """
    shrinkage = values.square() / (values.square() + strength)
    fitted = U @ (shrinkage[:, None] * (U.T @ target))
    leverage = intercept / len(U) + (U.square() * shrinkage).sum(dim=1)
    residual: torch.Tensor = (target - fitted) / (1 - leverage)[:, None]
    return residual


def calibrated_spread_factor(targets: torch.Tensor, fitted: torch.Tensor, W: torch.Tensor) -> float:
    """Factor, from 1 to ``MAX_SPREAD``, that gives the logits of ``fitted`` the spread of those of ``targets``.

    A component common to all classes does not affect decisions and is ignored: for a single output the factor is 1.

    Args:
        targets: Representations, centred, ``(n, d)``.
        fitted: Held-out predictions of a map, ``(n, d)``.
        W: The head's weight, ``(labels, d)``.
    """
    differences = (W - W.mean(dim=0)).T
    fitted_norm, target_norm = float((fitted @ differences).norm()), float((targets @ differences).norm())
    return min(max(target_norm / fitted_norm, 1.0), MAX_SPREAD) if fitted_norm > 0 else 1.0


def fold_into_head(
    ridge_map: RidgeMap, W: torch.Tensor, b: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Head ``(W', b')`` whose logits on ``z`` equal those of ``(W, b)`` on the mapped ``z``; exact, no layer added.

    Args:
        ridge_map: The map.
        W: The head's weight, ``(labels, d)``.
        b: The head's bias, ``(labels,)``, or ``None``; the new bias is ``None`` too if the map has no shift.
    """
    W64 = W.double()
    weight = (W64 @ ridge_map.M.T).to(W.dtype)
    if ridge_map.shift is None:
        return weight, b
    bias = torch.zeros(len(W), dtype=torch.float64) if b is None else b.double()
    return weight, (bias + W64 @ ridge_map.shift).to(W.dtype)
