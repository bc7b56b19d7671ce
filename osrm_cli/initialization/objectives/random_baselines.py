"""Starts for A that read no features: PEFT's two, and the controls."""

import math

import torch

from osrm_cli import seeding
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg.subspaces import orthonormal_rows


def kaiming(request: LayerProblem) -> torch.Tensor:
    """PEFT's default: ``kaiming_uniform_(a=sqrt(5))``, which is uniform in ``+-1/sqrt(d_in)``; ``(r, d_in)``."""
    drawn = torch.rand(
        request.rank,
        request.d_in,
        generator=seeding.generator(request.seed, "kaiming", request.task, request.layer),
        dtype=torch.float64,
    )
    return (2 * drawn - 1) / math.sqrt(request.d_in)


def gaussian(request: LayerProblem) -> torch.Tensor:
    """PEFT's ``init_lora_weights="gaussian"``: normal with standard deviation ``1/r``; ``(r, d_in)``."""
    drawn = seeding.gaussian(request.rank, request.d_in, request.seed, "gaussian", request.task, request.layer)
    return drawn / request.rank


def random_orthonormal(request: LayerProblem) -> torch.Tensor:
    """A uniformly random subspace's orthonormal basis, ``(r, d_in)``."""
    return orthonormal_rows(
        seeding.gaussian(request.rank, request.d_in, request.seed, "random-orthonormal", request.task, request.layer)
    )


def last_coordinates(request: LayerProblem) -> torch.Tensor:
    """Unit vectors of the last ``r`` inputs, ``(r, d_in)``, the same for every task and layer.

    What the published OSRM code amounts to on LAPACK, whose full SVD of a few mean vectors completes the basis there.
    """
    return torch.eye(request.d_in, dtype=torch.float64)[-request.rank :]
