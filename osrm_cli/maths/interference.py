"""How much one task's update moves the outputs for another task's inputs, without a forward pass.

``E ||B A x||^2 = tr[(B^T B)(A C A^T)]`` for inputs with second moment ``C``, the adapter's scaling in B: ``r x r``
work once ``A C A^T`` is known.
"""

from collections.abc import Sequence

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.maths import ridge
from osrm_cli.maths.lowrank import LowRank


def energy(update: LowRank, C: torch.Tensor) -> torch.Tensor:
    """``E ||B A x||^2`` with the scaling in B, a scalar, differentiable in A and B.

    Args:
        update: The factors.
        C: Uncentred second moment of the inputs, ``(d_in, d_in)``.
    """
    A, B = update.A, update.B
    return ((B.T @ B) * (A @ C @ A.T)).sum()


def energy_of_rows(update: LowRank, rows: torch.Tensor) -> torch.Tensor:
    """``energy`` for ``C = rows^T rows``: a sketch, or any factor of a second moment, ``(n, d_in)``."""
    seen = update.A @ rows.T
    return ((update.B.T @ update.B) * (seen @ seen.T)).sum()


def base_energy(W: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """``E ||W0 x||^2 = tr(W0 C W0^T)``, a scalar; W ``(d_out, d_in)``."""
    return ((W @ C) * W).sum()


def matrix(updates: Sequence[LowRank], moments: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(T, U)``, float64: entry ``t, u`` is the energy of update ``t`` on the inputs of task ``u`` in one layer."""
    doubled = [update.to(torch.float64) for update in updates]
    columns = [torch.stack([energy(update, C.double()) for update in doubled]) for C in moments]
    return torch.stack(columns, dim=1)


def relative(energies: Sequence[torch.Tensor], bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of energy in units of the base model's own, ``(T, U)``.

    Args:
        energies: ``matrix`` of each layer, ``(T, U)``.
        bases: ``base_energy`` of each layer on each task's inputs, ``(U,)``.
    """
    return torch.stack([energy / base for energy, base in zip(energies, bases, strict=True)]).mean(dim=0)


def penalty(update: LowRank, C_out: torch.Tensor, base: torch.Tensor | float) -> torch.Tensor:
    """``tr[(B^T B)(A C_out A^T)] / tr(W0 C_out W0^T)``, the scaling in B: training adds mu times this, layer by layer.

    Computed in the precision of ``C_out``, also under autocast, and differentiable in A and B.

    Args:
        update: The factors in training.
        C_out: The other tasks' second moment ``(d_in, d_in)``.
        base: ``base_energy`` of the layer for ``C_out``.
    """
    with torch.autocast(update.A.device.type, enabled=False):
        return energy(update.to(C_out.dtype), C_out) / base


def projection(update: LowRank, A: torch.Tensor) -> LowRank:
    """An existing update on a new A, ``B = argmin_B ||B A - dW||_F = dW A^+``: arXiv:2505.22934.

    Args:
        update: The existing adapter's ``dW = B_0 A_0``, its scaling in ``B_0``.
        A: New A ``(r, d_in)``, of full rank.
    """
    A = A.double()
    mixed: torch.Tensor = torch.linalg.lstsq(A.T, update.A.double().T).solution
    return LowRank(update.B.double() @ mixed.T, A)


def balanced(A: torch.Tensor, C: torch.Tensor, others: torch.Tensor, mu: float, count: int = 1) -> torch.Tensor:
    """``A'_t = A_t C_t (C_t + mu sum_{u != t} C_u)^{-1}``, ``(r, d_in)``: an existing adapter repaired, B kept.

    It minimises ``||(X - dW_t) C_t^{1/2}||^2 + mu sum_{u != t} ||X C_u^{1/2}||^2`` over ``X``, and keeps the rank. With
    ``mu = 1`` and unnormalised sums for the C, the repaired updates add up to RegMean's merge (arXiv:2212.09849).
    Where the sum is singular, every task counts as having a little of what none of them shows, as in ``regmean``.

    Args:
        A: The adapter's A ``(r, d_in)``.
        C: The task's own second moment ``(d_in, d_in)``.
        others: Sum of the other tasks' second moments.
        mu: What interference costs; 0 keeps the update.
        count: Number of other tasks.

    Raises:
        OsrmError: If mu is negative, or all features are zero.
    """
    if mu < 0:
        raise OsrmError(f"mu is {mu:g}, expected 0 or more")
    A, C = A.double(), C.double()
    total = C + mu * others.double()
    if total.trace() <= 0:
        raise OsrmError("all second moments are zero", "collect the features again")
    L, added = ridge.cholesky(total)
    right = A @ C + added / (1 + mu * count) * A
    repaired: torch.Tensor = torch.cholesky_solve(right.T, L)
    return repaired.T
