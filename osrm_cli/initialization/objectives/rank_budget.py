"""One total rank spread over the layers by what each direction is worth to the objective."""

from collections.abc import Mapping

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem

SPECTRAL_OBJECTIVES = ("osrm", "osrm-in", "gevd", "eva", "loss-aware")
SCORE_DECIMALS = 9  # of worth: differences below are rounding, and would spread ranks by chance


def check_spectrum(objective: str) -> None:
    """Check that an objective orders its directions by what they are worth.

    Raises:
        OsrmError: If it does not.
    """
    if objective not in SPECTRAL_OBJECTIVES:
        raise OsrmError(
            f"objective '{objective}' has no spectrum to spread a rank budget by",
            f"choose {', '.join(SPECTRAL_OBJECTIVES)}, or give every layer the same --rank",
        )


def direction_scores(objective: str, A: torch.Tensor, problem: LayerProblem) -> torch.Tensor:
    """What each row of A is worth to its objective, ``(r,)``, comparable between layers; more is better.

    Shares of energy, so that a layer's size does not count: the own share for ``eva`` and ``osrm-in``, own share per
    unit of ``M`` for ``gevd``, the gradient's share per unit of ``M`` for ``loss-aware``, the others' share, negated,
    for ``osrm``.

    Raises:
        OsrmError: If the objective has no spectrum, or the features that it needs are missing.
    """
    check_spectrum(objective)
    if objective == "osrm":
        values = -problem.others_energy_share(A)
    elif objective in ("eva", "osrm-in"):
        values = problem.own_energy_share(A)
    else:
        gained = problem.own_energy_share(A) if objective == "gevd" else problem.gradient_energy_share(A)
        values = gained / (problem.others_energy_share(A) + max(problem.eps, 1e-9) / problem.d_in)
    return values.round(decimals=SCORE_DECIMALS)


def allocate_rank_budget(spectra: Mapping[str, torch.Tensor], budget: int) -> dict[str, int]:
    """Rank of every layer: the ``budget`` most valuable directions of all, at least one a layer.

    Equal worth goes to the layer that has fewer directions so far, so equal spectra give equal ranks.

    Args:
        spectra: Worth of each layer's directions, ``(r_max,)``, in the order in which a lower rank keeps them.
        budget: Sum of the ranks.

    Raises:
        OsrmError: If the budget is below one a layer or above what the spectra hold.
    """
    most = sum(len(values) for values in spectra.values())
    if not len(spectra) <= budget <= most:
        raise OsrmError(
            f"rank budget {budget} does not fit, expected {len(spectra)} to {most} in all",
            f"it is the sum over {len(spectra)} layers, of at least one each",
        )
    ranks = dict.fromkeys(spectra, 1)
    # A direction is worth at most what the ones before it are: a lower rank keeps those first.
    left = [
        (-float(value), index, order, layer)
        for order, (layer, values) in enumerate(spectra.items())
        for index, value in enumerate(values.cummin(dim=0).values[1:])
    ]
    for _, _, _, layer in sorted(left)[: budget - len(spectra)]:
        ranks[layer] += 1
    return ranks
