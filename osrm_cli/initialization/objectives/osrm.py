"""OSRM's own objectives for A, and how the other tasks' statistics are put together for every objective."""

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg import eigen
from osrm_cli.linalg.second_moment import others_moment, stack_rows, total_moment
from osrm_cli.linalg.subspaces import orthonormal_rows, row_space_basis
from osrm_cli.seeding import gaussian

__all__ = ["LayerProblem", "official", "osrm", "others_moment", "stack_rows", "total_moment"]


def osrm(request: LayerProblem) -> torch.Tensor:
    """``argmin ||A H^T||_F^2`` with ``A A^T = I``, ``(r, d_in)``: OSRM, arXiv:2505.22934, Eq. 2.

    Any basis of the null space of ``H`` is optimal; where there is one, it is drawn at random, keyed by seed, task and
    layer. Else A holds the eigenvectors of the ``r`` smallest eigenvalues of ``H^T H`` or ``C_out``, uncentred.

    Raises:
        OsrmError: If the request holds neither the others' rows nor their second moment.
    """
    drawn = gaussian(request.rank, request.d_in, request.seed, "osrm", request.task, request.layer)
    if request.out_rows is not None:
        H = request.out_rows.to(torch.float64)
        if H.shape[0] + request.rank > request.d_in:
            H = row_space_basis(H)
        if H.shape[0] + request.rank <= request.d_in:
            # Householder's first n columns span the columns of H^T even where these depend on one another.
            return orthonormal_rows(torch.cat([H, drawn]))[H.shape[0] :]
        H = request.out_rows.to(torch.float64)
        return eigen.fix_signs(eigen.smallest_eigenvectors(H.T @ H, drawn))
    if request.out_moment is None:
        raise OsrmError(f"objective 'osrm' was given no features of other tasks for {request.layer}")
    return eigen.fix_signs(eigen.smallest_eigenvectors(request.out_moment.to(torch.float64), drawn))


def official(request: LayerProblem) -> torch.Tensor:
    """The published code's steps, ``(r, d_in)``: the last right singular vectors of the other tasks' means.

    With fewer means than inputs these are whatever basis LAPACK completes the row space with, signs included.

    Raises:
        OsrmError: If the request holds no rows.
    """
    if request.out_rows is None:
        raise OsrmError(f"objective 'official' was given no means of other tasks for {request.layer}")
    Vh: torch.Tensor = torch.linalg.svd(request.out_rows.to(torch.float64), full_matrices=True).Vh
    return Vh[-request.rank :]
