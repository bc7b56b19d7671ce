"""Objectives that weigh a task's own energy against the other tasks'."""

import math

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg import eigen
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.linalg.subspaces import orthonormal_rows
from osrm_cli.seeding import gaussian

EPS_FLOORS = (1e-9, 1e-7, 1e-5, 1e-3)  # cond(M) <= 1 + d_in / eps, which Cholesky in float64 still resolves at 1e-9
EXCLUDED_ENERGY = 0.99  # of the others' energy, in the excluded directions where there is no null space
NULL = 1e-12  # relative to the largest eigenvalue of a second moment: below it, float64 sums say nothing


def gevd(problem: LayerProblem) -> torch.Tensor:
    """Top ``r`` of ``C_in u = lambda M u``, ``M = C_out + eps (tr C_out / d) I``, orthonormalised; ``(r, d_in)``.

    LoDA's construction (arXiv:2603.00191), here for merging. As eps falls to 0 it becomes ``osrm_in``, as it grows to
    infinity ``eva``. eps below 1e-9 is taken as 1e-9: ``cond(M) <= 1 + d_in / eps``.

    Raises:
        OsrmError: If the own or the others' features are missing.
    """
    return _generalised_directions(problem, "gevd", problem.require_own("gevd"))


def loss_aware(problem: LayerProblem) -> torch.Tensor:
    """Rows that span ``Q_r^T M^{-1/2}``, ``Q_r`` the right singular vectors of ``G M^{-1/2}``; ``(r, d_in)``.

    The steepest decrease of the loss per unit of interference: ``gevd`` with ``G^T G`` for ``C_in``, ``G`` being
    ``dL/dW`` of the task's own loss.

    Raises:
        OsrmError: If the gradient or the others' features are missing.
    """
    if problem.gradient is None:
        raise OsrmError(f"objective 'loss-aware' needs the gradient of its own task's loss for {problem.layer}")
    return _generalised_directions(problem, "loss-aware", SecondMoment(problem.gradient, factored=True))


def eva(problem: LayerProblem) -> torch.Tensor:
    """Top ``r`` of ``C_in``, ``(r, d_in)``: EVA's directions (arXiv:2410.07170), uncentred.

    Raises:
        OsrmError: If the own features are missing.
    """
    return _padded_with_random_rows(
        _principal_own_directions(problem, "eva", _no_excluded_directions(problem)), problem, "eva"
    )


def osrm_in(problem: LayerProblem) -> torch.Tensor:
    """The task's principal directions among those that the other tasks do not use, ``(r, d_in)``.

    InfLoRA's construction (arXiv:2404.00228), here for merging. Unused is the null space of the others' features; where
    that has fewer than ``r`` dimensions, the complement of the principal directions that hold 99 % of their energy.

    Raises:
        OsrmError: If the own or the others' features are missing.
    """
    excluded = _directions_used_by_others(problem)
    return _padded_with_random_rows(
        _principal_own_directions(problem, "osrm-in", excluded), problem, "osrm-in", excluded
    )


def _principal_own_directions(problem: LayerProblem, name: str, excluded: torch.Tensor) -> torch.Tensor:
    """At most ``r`` principal own directions orthogonal to the rows of ``excluded``, without those of no energy."""
    own = problem.require_own(name).to(torch.float64)
    if own.factored:
        rows = _remove_excluded_directions(_remove_excluded_directions(own.matrix, excluded), excluded)
        _, values, Vh = torch.linalg.svd(rows, full_matrices=False)
        Vh = Vh[values > own.matrix.norm() * max(rows.shape) * torch.finfo(rows.dtype).eps]
        return eigen.fix_eigenvector_signs(Vh[: problem.rank])
    C = own.matrix

    def projected(V: torch.Tensor) -> torch.Tensor:
        return _remove_excluded_directions((C @ _remove_excluded_directions(V.T, excluded).T).T, excluded).T

    rows = _remove_excluded_directions(
        eigen.largest_eigenvectors(projected, _random_rows(problem, name, problem.rank)), excluded
    )
    energy = ((rows @ C) * rows).sum(dim=1)
    # A direction without energy is arbitrary, perhaps one of the excluded ones.
    return eigen.fix_eigenvector_signs(orthonormal_rows(rows[energy > NULL * C.trace()]))


def _directions_used_by_others(problem: LayerProblem) -> torch.Tensor:
    """Orthonormal rows ``(q, d_in)``, ``q <= d_in - r``, that the result of ``osrm_in`` must be orthogonal to."""
    others = problem.require_others("osrm-in").to(torch.float64)
    if others.factored:
        _, values, directions = torch.linalg.svd(others.matrix, full_matrices=False)
        energy, null = values.square(), (max(others.matrix.shape) * torch.finfo(torch.float64).eps) ** 2
    else:
        energy, vectors = torch.linalg.eigh(others.matrix)
        energy, directions, null = energy.clamp(min=0).flip(0), vectors.flip(1).T, NULL
    most = problem.d_in - problem.rank
    rank = int((energy > null * energy.max()).sum())
    if rank > most:
        rank = 1 + int((energy.cumsum(0) < EXCLUDED_ENERGY * energy.sum()).sum())
    excluded: torch.Tensor = directions[: min(rank, most)]
    return excluded


def _generalised_directions(problem: LayerProblem, name: str, own: SecondMoment) -> torch.Tensor:
    """Top ``r`` of ``C u = lambda M u`` for the ``C`` of ``own``, orthonormalised, ``(r, d_in)``."""
    others, own, basis = problem.require_others(name).to(torch.float64), own.to(torch.float64), None
    if others.factored and own.factored and len(others.matrix) + len(own.matrix) < problem.d_in:
        # All solutions lie in the span of both sets of rows: solve there, and never build a d x d matrix.
        basis = orthonormal_rows(torch.cat([_normalize_task_rows(others.matrix), _normalize_task_rows(own.matrix)]))
        others, own = (SecondMoment(each.matrix @ basis.T, factored=True) for each in (others, own))
    C_in, L = own.dense(), _factor_others_moment(others.dense(), problem.eps, problem.d_in)

    def whitened(V: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = C_in @ torch.linalg.solve_triangular(L.T, V, upper=True)
        whole: torch.Tensor = torch.linalg.solve_triangular(L, image, upper=False)
        return whole

    top = eigen.largest_eigenvectors(whitened, _random_rows(problem, name, min(problem.rank, len(L)))[:, : len(L)])
    values = (top * whitened(top.T).T).sum(dim=1)
    top = top[values > len(L) * torch.finfo(values.dtype).eps * values[0]]  # the rest is rounding
    A = torch.linalg.solve_triangular(L.T, top.T, upper=True).T
    return _padded_with_random_rows(
        eigen.fix_eigenvector_signs(orthonormal_rows(A if basis is None else A @ basis)), problem, name
    )


def _factor_others_moment(C_out: torch.Tensor, eps: float, d_in: int) -> torch.Tensor:
    """Cholesky factor of ``M`` up to a scalar, ``(p, p)``.

    A statistic stored in float32 can be indefinite by its rounding; then eps rises until ``M`` is definite.
    """
    identity = torch.eye(len(C_out), dtype=C_out.dtype, device=C_out.device)
    level = C_out.trace() / d_in
    if math.isinf(eps) or level == 0:
        return identity
    for least in EPS_FLOORS:
        used = max(eps, least)
        L, failed = torch.linalg.cholesky_ex((C_out / level + used * identity) / max(used, 1.0))
        if not failed:
            factor: torch.Tensor = L
            return factor
    raise OsrmError("the other tasks' second moment is not positive semi-definite", "collect the features again")


def _padded_with_random_rows(
    A: torch.Tensor, problem: LayerProblem, name: str, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """A with seeded random orthonormal rows added where the features have fewer than ``r`` directions."""
    missing = problem.rank - A.shape[0]
    if missing == 0:
        return A
    taken = A if excluded is None else torch.cat([excluded, A])
    added = orthonormal_rows(torch.cat([taken, _random_rows(problem, name, missing)]))[len(taken) :]
    return torch.cat([A, added])


def _random_rows(problem: LayerProblem, name: str, rows: int) -> torch.Tensor:
    return gaussian(rows, problem.d_in, problem.seed, name, problem.task, problem.layer)


def _remove_excluded_directions(rows: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """Rows without their part in the span of ``excluded``."""
    return rows - (rows @ excluded.T) @ excluded


def _no_excluded_directions(problem: LayerProblem) -> torch.Tensor:
    return torch.zeros(0, problem.d_in, dtype=torch.float64)


def _normalize_task_rows(rows: torch.Tensor) -> torch.Tensor:
    norm = rows.norm()
    return rows / (norm if norm > 0 else 1.0)
