"""Initializations of A that read no features: PEFT's two, and the controls."""

import math

import torch

from osrm_cli import seeding
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg.subspaces import orthonormal_rows


def kaiming(problem: LayerProblem) -> torch.Tensor:
    """PEFT's default: ``kaiming_uniform_(a=sqrt(5))``, which is uniform in ``+-1/sqrt(d_in)``; ``(r, d_in)``."""
    drawn = torch.rand(
        problem.rank,
        problem.d_in,
        generator=seeding.generator(problem.seed, "kaiming", problem.task, problem.layer),
        dtype=torch.float64,
    )
    return (2 * drawn - 1) / math.sqrt(problem.d_in)


def gaussian(problem: LayerProblem) -> torch.Tensor:
    """PEFT's ``init_lora_weights="gaussian"``: normal with standard deviation ``1/r``; ``(r, d_in)``."""
    drawn = seeding.gaussian(problem.rank, problem.d_in, problem.seed, "gaussian", problem.task, problem.layer)
    return drawn / problem.rank


def random_orthonormal(problem: LayerProblem) -> torch.Tensor:
    """A uniformly random subspace's orthonormal basis, ``(r, d_in)``."""
    return orthonormal_rows(
        seeding.gaussian(problem.rank, problem.d_in, problem.seed, "random-orthonormal", problem.task, problem.layer)
    )


def last_coordinates(problem: LayerProblem) -> torch.Tensor:
    """Unit vectors of the last ``r`` inputs, ``(r, d_in)``, the same for every task and layer.

    The published OSRM code yields the same on LAPACK, whose full SVD of a few mean vectors completes the basis there.
    """
    return torch.eye(problem.d_in, dtype=torch.float64)[-problem.rank :]
