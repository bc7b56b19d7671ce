"""The size of A, apart from its directions."""

import math

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem

SCALES = ("orthonormal", "kaiming", "gaussian", "match-output")


def rescale_initial_rows(A: torch.Tensor, how: str, problem: LayerProblem) -> torch.Tensor:
    """A ``(r, d_in)`` at another size.

    Args:
        A: Any initialization.
        how: ``orthonormal``: the nearest matrix with orthonormal rows. ``kaiming``, ``gaussian``: the root-mean-square
            row norm of PEFT's initializations in expectation, ``1/sqrt(3)`` and ``sqrt(d_in)/r``. A number: that norm.
            ``match-output``: ``tr(A C_in A^T) = r tr(C_in) / (3 d_in)``, the expectation of the Kaiming initialization.
        problem: The layer, its rank, and for ``match-output`` the own features.

    Raises:
        OsrmError: If ``how`` is unknown, the number is not positive, or ``match-output`` has no own features.
    """
    if how == "orthonormal":
        U, _, Vh = torch.linalg.svd(A, full_matrices=False)
        polar: torch.Tensor = U @ Vh
        return polar
    if how == "match-output":
        share = float(problem.own_energy_share(A).sum())
        return A * math.sqrt(problem.rank / (3 * problem.d_in * share)) if share > 0 else A
    return A * (initial_row_norm(how, problem) * math.sqrt(problem.rank) / float(A.norm()))


def initial_row_norm(how: str, problem: LayerProblem) -> float:
    """The row norm that ``kaiming``, ``gaussian`` or a number stands for."""
    if how == "kaiming":
        return 1 / math.sqrt(3)
    if how == "gaussian":
        return math.sqrt(problem.d_in) / problem.rank
    try:
        number = float(how)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise OsrmError(f"unknown scale '{how}' for A, expected {', '.join(SCALES)} or a positive row norm")
    return number
