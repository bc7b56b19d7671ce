"""Energy of one task's update on another task's inputs, without a forward pass.

``E ||B A x||^2 = tr[(B^T B)(A C A^T)]`` for inputs with second moment ``C``, the adapter's scaling in B: ``r x r``
work once ``A C A^T`` is known.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from osrm_cli.linalg.low_rank import LowRank


def delta_energy(update: LowRank, C: torch.Tensor) -> torch.Tensor:
    """``E ||B A x||^2`` with the scaling in B, a scalar, differentiable in A and B.

    Args:
        update: The factors.
        C: Uncentred second moment of the inputs, ``(d_in, d_in)``.
    """
    A, B = update.A, update.B
    return ((B.T @ B) * (A @ C @ A.T)).sum()


def delta_energy_of_rows(update: LowRank, rows: torch.Tensor) -> torch.Tensor:
    """``energy`` for ``C = rows^T rows``: a sketch, or any factor of a second moment, ``(n, d_in)``."""
    seen = update.A @ rows.T
    return ((update.B.T @ update.B) * (seen @ seen.T)).sum()


def weight_energy(W: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """``E ||W0 x||^2 = tr(W0 C W0^T)``, a scalar; W ``(d_out, d_in)``."""
    return ((W @ C) * W).sum()


class _DeltaEnergies(torch.autograd.Function):
    """``energy`` from ``A C``: as C is symmetric, the gradient needs no other product with it."""

    @staticmethod
    def forward(ctx: Any, A: torch.Tensor, B: torch.Tensor, AC: torch.Tensor) -> torch.Tensor:
        inner, seen = B.mT @ B, AC @ A.mT
        ctx.save_for_backward(B, AC, inner, seen)
        return (inner * seen).sum(dim=(-2, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        B, AC, inner, seen = ctx.saved_tensors
        twice = 2 * grad[..., None, None]
        return inner @ (twice * AC).sum(dim=0), B @ (twice * seen).sum(dim=0), None


def batched_delta_energies(A: torch.Tensor, B: torch.Tensor, AC: torch.Tensor) -> torch.Tensor:
    """``energy`` of L layers' updates on the inputs of U kinds, ``(U, L)``, differentiable in A and B.

    In training C is by far the largest thing that is read, and so it is read once a step.

    Args:
        A: ``(L, r, d_in)``.
        B: ``(L, d_out, r)``, the scaling in it.
        AC: ``A`` times the inputs' symmetric second moments, ``(U, L, r, d_in)``; its gradient is accounted for.
    """
    energies: torch.Tensor = _DeltaEnergies.apply(A, B, AC)  # type: ignore[no-untyped-call]
    return energies
