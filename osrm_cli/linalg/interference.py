"""Energy of one task's update on another task's inputs, without a forward pass.

``E ||B A x||^2 = tr[(B^T B)(A C A^T)]`` for inputs with second moment ``C``, the adapter's scaling in B: ``r x r``
work once ``A C A^T`` is known.
"""

import torch

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
