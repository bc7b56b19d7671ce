"""Closed-form retrofits: A and B of the same rank that interfere less."""

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg import second_moment
from osrm_cli.linalg.low_rank import LowRank


def solve_projection(update: LowRank, A: torch.Tensor) -> LowRank:
    """An existing update on a new A, ``B = argmin_B ||B A - dW||_F = dW A^+``: arXiv:2505.22934.

    Args:
        update: The existing adapter's ``dW = B_0 A_0``, its scaling in ``B_0``.
        A: New A ``(r, d_in)``, of full rank.
    """
    A = A.double()
    mixing: torch.Tensor = torch.linalg.lstsq(A.T, update.A.double().T).solution
    return LowRank(update.B.double() @ mixing.T, A)


def solve_balanced(A: torch.Tensor, C: torch.Tensor, others: torch.Tensor, mu: float, count: int = 1) -> torch.Tensor:
    """``A'_t = A_t C_t (C_t + mu sum_{u != t} C_u)^{-1}``, ``(r, d_in)``: A solved for, B unchanged.

    It minimises ``||(X - dW_t) C_t^{1/2}||^2 + mu sum_{u != t} ||X C_u^{1/2}||^2`` over ``X``, and keeps the rank. With
    ``mu = 1`` and unnormalised sums for the C, the repaired updates add up to RegMean's merge (arXiv:2212.09849).
    Where the sum is singular, a small ridge stands for the directions that no task uses, as in ``regmean``.

    Args:
        A: The adapter's A ``(r, d_in)``.
        C: The task's own second moment ``(d_in, d_in)``.
        others: Sum of the other tasks' second moments.
        mu: Weight of the interference; 0 keeps the update.
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
    L, added = second_moment.ridge_cholesky(total)
    right = A @ C + added / (1 + mu * count) * A
    solution: torch.Tensor = torch.cholesky_solve(right.T, L)
    return solution.T
