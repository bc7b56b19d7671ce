"""OSRM's own objectives for A, and how the other tasks' statistics are put together for every objective."""

from collections.abc import Iterable, Sequence

import torch

from osrm_cli import seeding as random
from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import Request
from osrm_cli.initialization.objectives.random_baselines import orthonormal_rows
from osrm_cli.linalg import eigen

__all__ = ["Request", "official", "osrm", "others_moment", "stack_rows", "total_moment"]


def osrm(request: Request) -> torch.Tensor:
    """``argmin ||A H^T||_F^2`` with ``A A^T = I``, ``(r, d_in)``: OSRM, arXiv:2505.22934, Eq. 2.

    Any basis of the null space of ``H`` is optimal; where there is one, it is drawn at random, keyed by seed, task and
    layer. Else A holds the eigenvectors of the ``r`` smallest eigenvalues of ``H^T H`` or ``C_out``, uncentred.

    Raises:
        OsrmError: If the request holds neither the others' rows nor their second moment.
    """
    drawn = random.gaussian(request.rank, request.d_in, request.seed, "osrm", request.task, request.layer)
    if request.out_rows is not None:
        H = request.out_rows.to(torch.float64)
        if H.shape[0] + request.rank > request.d_in:
            H = row_space(H)
        if H.shape[0] + request.rank <= request.d_in:
            # Householder's first n columns span the columns of H^T even where these depend on one another.
            return orthonormal_rows(torch.cat([H, drawn]))[H.shape[0] :]
        H = request.out_rows.to(torch.float64)
        return eigen.signed(eigen.smallest(H.T @ H, drawn))
    if request.out_moment is None:
        raise OsrmError(f"objective 'osrm' was given no features of other tasks for {request.layer}")
    return eigen.signed(eigen.smallest(request.out_moment.to(torch.float64), drawn))


def official(request: Request) -> torch.Tensor:
    """The published code's steps, ``(r, d_in)``: the last right singular vectors of the other tasks' means.

    With fewer means than inputs these are whatever basis LAPACK completes the row space with, signs included.

    Raises:
        OsrmError: If the request holds no rows.
    """
    if request.out_rows is None:
        raise OsrmError(f"objective 'official' was given no means of other tasks for {request.layer}")
    Vh: torch.Tensor = torch.linalg.svd(request.out_rows.to(torch.float64), full_matrices=True).Vh
    return Vh[-request.rank :]


def row_space(H: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis ``(rank H, d)`` of the span of the rows of ``H`` ``(n, d)``, the main direction first."""
    _, values, Vh = torch.linalg.svd(H, full_matrices=False)
    directions: torch.Tensor = Vh[values > values.max() * max(H.shape) * torch.finfo(H.dtype).eps]
    return directions


def stack_rows(blocks: Sequence[torch.Tensor], balanced: bool) -> torch.Tensor:
    """The other tasks' means ``(d,)``, samples or sketches ``(n, d)`` as one ``H`` ``(sum n, d)``.

    Args:
        blocks: One tensor for each other task.
        balanced: Give every task the same weight, ``tr = 1``, as in ``C_out``; else as they come, as in Eq. 3.
    """
    rows = [block.reshape(-1, block.shape[-1]).to(torch.float64) for block in blocks]
    return torch.cat([row / _or_one(row.norm()) for row in rows] if balanced else rows)


def total_moment(moments: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum over all tasks of second moments ``(d, d)``, each divided by its trace."""
    total: torch.Tensor | None = None
    for moment in moments:
        part = moment.to(torch.float64) / _or_one(moment.trace())
        total = part if total is None else total.add_(part)
    if total is None:
        raise OsrmError("there are no second moments to add up")
    return total


def others_moment(total: torch.Tensor, own: torch.Tensor, tasks: int) -> torch.Tensor:
    """``C_out`` of one task, ``(d, d)``: the total minus its own, so that all tasks together cost one pass.

    Args:
        total: ``total_moment`` of all tasks, the own one among them.
        own: The task's own second moment.
        tasks: Number of tasks in the total.

    Raises:
        OsrmError: If there is no other task.
    """
    if tasks < 2:
        raise OsrmError("there is only one task's second moment, expected at least one other task")
    return (total - own.to(torch.float64) / _or_one(own.trace())) / (tasks - 1)


def _or_one(value: torch.Tensor) -> torch.Tensor:
    """The divisor, or one where it is zero: a layer that is fed zeros stays zero."""
    return torch.where(value > 0, value, torch.ones_like(value)).to(torch.float64)
