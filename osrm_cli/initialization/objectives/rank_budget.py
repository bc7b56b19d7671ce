"""Allocate a total rank to the layers by the score of each direction under the objective."""

from collections.abc import Mapping

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem

SPECTRAL_OBJECTIVES = ("osrm", "osrm-in", "gevd", "eva", "loss-aware")
SCORE_DECIMALS = 9  # smaller differences are rounding, and would allocate ranks by chance


def check_objective_spectrum(objective: str) -> None:
    """Check that an objective gives each direction a score.

    Raises:
        OsrmError: If it does not.
    """
    if objective not in SPECTRAL_OBJECTIVES:
        raise OsrmError(
            f"objective '{objective}' has no spectrum to allocate a rank budget by",
            f"choose {', '.join(SPECTRAL_OBJECTIVES)}, or give every layer the same --rank",
        )


def direction_scores(objective: str, A: torch.Tensor, problem: LayerProblem) -> torch.Tensor:
    """Score of each row of A under its objective, ``(r,)``, comparable between layers; higher is better.

    Shares of energy, so that a layer's size does not count: the own share for ``eva`` and ``osrm-in``, own share per
    unit of ``M`` for ``gevd``, the gradient's share per unit of ``M`` for ``loss-aware``, the others' share, negated,
    for ``osrm``.

    Raises:
        OsrmError: If the objective has no spectrum, or the features that it needs are missing.
    """
    check_objective_spectrum(objective)
    if objective == "osrm":
        values = -problem.others_energy_share(A)
    elif objective in ("eva", "osrm-in"):
        values = problem.own_energy_share(A)
    else:
        gained = problem.own_energy_share(A) if objective == "gevd" else problem.gradient_energy_share(A)
        values = gained / (problem.others_energy_share(A) + max(problem.eps, 1e-9) / problem.d_in)
    return values.round(decimals=SCORE_DECIMALS)


def allocate_rank_budget(spectra: Mapping[str, torch.Tensor], budget: int) -> dict[str, int]:
    """Rank of every layer: the ``budget`` directions with the highest scores, at least one per layer.

    Equal scores go to the layer that has fewer directions so far, so equal spectra give equal ranks.

    Args:
        spectra: Scores of each layer's directions, ``(r_max,)``, in the order in which a lower rank keeps them.
        budget: Sum of the ranks.

    Raises:
        OsrmError: If the budget is below one a layer or above what the spectra hold.
    """
    highest = sum(len(values) for values in spectra.values())
    if not len(spectra) <= budget <= highest:
        raise OsrmError(
            f"rank budget {budget} does not fit, expected {len(spectra)} to {highest} in all",
            f"it is the sum over {len(spectra)} layers, of at least one each",
        )
    ranks = dict.fromkeys(spectra, 1)
    # A direction scores at most as high as those before it: a lower rank keeps those first.
    candidates = [
        (-float(value), index, order, layer)
        for order, (layer, values) in enumerate(spectra.items())
        for index, value in enumerate(values.cummin(dim=0).values[1:])
    ]
    for _, _, _, layer in sorted(candidates)[: budget - len(spectra)]:
        ranks[layer] += 1
    return ranks
