"""OSRM's objective for A, and the steps of its published code."""

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg import eigen
from osrm_cli.linalg.subspaces import orthonormal_rows, row_space_basis
from osrm_cli.seeding import gaussian


def osrm(problem: LayerProblem) -> torch.Tensor:
    """``argmin ||A H^T||_F^2`` with ``A A^T = I``, ``(r, d_in)``: OSRM, arXiv:2505.22934, Eq. 2.

    Any basis of the null space of ``H`` is optimal; where there is one, it is drawn at random, keyed by seed, task and
    layer. Else A holds the eigenvectors of the ``r`` smallest eigenvalues of ``H^T H`` or ``C_out``, uncentred.

    Raises:
        OsrmError: If there are no features of other tasks.
    """
    others = problem.require_others("osrm")
    drawn = gaussian(problem.rank, problem.d_in, problem.seed, "osrm", problem.task, problem.layer)
    if others.factored:
        H = others.matrix.to(torch.float64)
        if H.shape[0] + problem.rank > problem.d_in:
            H = row_space_basis(H)
        if H.shape[0] + problem.rank <= problem.d_in:
            # Householder's first n columns span the columns of H^T even where these depend on one another.
            return orthonormal_rows(torch.cat([H, drawn]))[H.shape[0] :]
    return eigen.fix_eigenvector_signs(eigen.smallest_eigenvectors(others.to(torch.float64).dense(), drawn))


def official(problem: LayerProblem) -> torch.Tensor:
    """The published code's steps, ``(r, d_in)``: the last right singular vectors of the other tasks' means.

    With fewer means than inputs these are whatever basis LAPACK completes the row space with, signs included.

    Raises:
        OsrmError: If there are no rows of other tasks.
    """
    if problem.others is None or not problem.others.factored:
        raise OsrmError(f"objective 'official' needs means of other tasks for {problem.layer}")
    Vh: torch.Tensor = torch.linalg.svd(problem.others.matrix.to(torch.float64), full_matrices=True).Vh
    return Vh[-problem.rank :]
