"""How much one task's update moves the outputs for another task's inputs, without a forward pass.

``E ||s B A x||^2 = s^2 tr[(B^T B)(A C A^T)]`` for inputs with second moment ``C``: ``r x r`` work once ``A C A^T`` is
known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from osrm_cli.errors import OsrmError


class Update(NamedTuple):
    """One adapter's update of one layer, ``scale * B @ A``: A ``(r, d_in)``, B ``(d_out, r)``."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float


def energy(update: Update, C: torch.Tensor) -> torch.Tensor:
    """``E ||s B A x||^2``, a scalar, differentiable in A and B.

    Args:
        update: The factors.
        C: Uncentred second moment of the inputs, ``(d_in, d_in)``.
    """
    A, B, scale = update
    return scale**2 * ((B.T @ B) * (A @ C @ A.T)).sum()


def energy_of_rows(update: Update, rows: torch.Tensor) -> torch.Tensor:
    """``energy`` for ``C = rows^T rows``: a sketch, or any factor of a second moment, ``(n, d_in)``."""
    A, B, scale = update
    seen = A @ rows.T
    return scale**2 * ((B.T @ B) * (seen @ seen.T)).sum()


def base_energy(W: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """``E ||W0 x||^2 = tr(W0 C W0^T)``, a scalar; W ``(d_out, d_in)``."""
    return ((W @ C) * W).sum()


def matrix(updates: Sequence[Update], moments: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(T, U)``, float64: entry ``t, u`` is the energy of update ``t`` on the inputs of task ``u`` in one layer."""
    doubled = [Update(A.double(), B.double(), scale) for A, B, scale in updates]
    columns = [torch.stack([energy(update, C.double()) for update in doubled]) for C in moments]
    return torch.stack(columns, dim=1)


def relative(energies: Sequence[torch.Tensor], bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of energy in units of the base model's own, ``(T, U)``.

    Args:
        energies: ``matrix`` of each layer, ``(T, U)``.
        bases: ``base_energy`` of each layer on each task's inputs, ``(U,)``.
    """
    return torch.stack([energy / base for energy, base in zip(energies, bases, strict=True)]).mean(dim=0)


def penalty(update: Update, C_out: torch.Tensor, base: torch.Tensor | float) -> torch.Tensor:
    """``s^2 tr[(B^T B)(A C_out A^T)] / tr(W0 C_out W0^T)``: what training adds, times mu, for every layer.

    Computed in float32 at least, also under autocast, and differentiable in A and B.

    Args:
        update: The factors in training.
        C_out: The other tasks' second moment ``(d_in, d_in)``, float32.
        base: ``base_energy`` of the layer for ``C_out``.
    """
    A, B, scale = update
    with torch.autocast(A.device.type, enabled=False):
        return energy(Update(A.to(C_out.dtype), B.to(C_out.dtype), scale), C_out) / base


def projection(update: Update, A: torch.Tensor, scale: float) -> torch.Tensor:
    """B of an existing update on a new A, ``argmin_B ||scale B A - dW||_F``, ``(d_out, r)``: arXiv:2505.22934.

    Args:
        update: The existing adapter, ``dW = s B_0 A_0``.
        A: New A ``(r, d_in)``.
        scale: Scaling of the new adapter.
    """
    A_0, B_0, s = (update.A.double(), update.B.double(), update.scale)
    mixed: torch.Tensor = torch.linalg.lstsq(A.double().T, A_0.T).solution
    return (s / scale) * B_0 @ mixed.T


def balanced(A: torch.Tensor, C: torch.Tensor, others: torch.Tensor, mu: float) -> torch.Tensor:
    """``A'_t = A_t C_t (C_t + mu sum_{u != t} C_u)^{-1}``, ``(r, d_in)``: an existing adapter repaired, B kept.

    It minimises ``||(X - dW_t) C_t^{1/2}||^2 + mu sum_{u != t} ||X C_u^{1/2}||^2`` over ``X``, and keeps the rank. With
    ``mu = 1`` and unnormalised sums for the C, the repaired updates add up to RegMean's merge (arXiv:2212.09849).

    Args:
        A: The adapter's A ``(r, d_in)``.
        C: The task's own second moment ``(d_in, d_in)``.
        others: Sum of the other tasks' second moments.
        mu: What interference costs; 0 keeps the update on its own inputs.

    Raises:
        OsrmError: If mu is negative, or all features are zero.
    """
    if mu < 0:
        raise OsrmError(f"mu is {mu:g}, expected 0 or more")
    C = C.double()
    total = C + mu * others.double()
    level = float(total.trace()) / len(total)
    if level <= 0:
        raise OsrmError("all second moments are zero", "collect the features again")
    L, failed = torch.linalg.cholesky_ex(total)
    if failed:  # A C_t lies in the range of the total, so a ridge far below it changes nothing else
        total.diagonal().add_(1e-10 * level)
        L = torch.linalg.cholesky(total)
    repaired: torch.Tensor = torch.cholesky_solve(C @ A.double().T, L)
    return repaired.T
