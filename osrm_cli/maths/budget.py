"""One total rank spread over the layers by what each direction is worth to the objective."""

from collections.abc import Mapping

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.maths.request import Request


def worth(objective: str, A: torch.Tensor, request: Request) -> torch.Tensor:
    """What each row of A is worth to its objective, ``(r,)``, comparable between layers; more is better.

    Shares of energy, so that a layer's size does not count: the own share for ``eva`` and ``osrm-in``, own share per
    unit of ``M`` for ``gevd``, the others' share, negated, for ``osrm``.

    Raises:
        OsrmError: If the objective has no spectrum, or the features that it needs are missing.
    """
    if objective in ("eva", "osrm-in"):
        return request.own_share(A)
    if objective == "gevd":
        return request.own_share(A) / (request.out_share(A) + max(request.eps, 1e-9) / request.d_in)
    if objective == "osrm":
        return -request.out_share(A)
    raise OsrmError(
        f"objective '{objective}' has no spectrum to spread a rank budget by",
        "choose osrm, osrm-in, gevd or eva, or give every layer the same --rank",
    )


def spread_rank(spectra: Mapping[str, torch.Tensor], budget: int) -> dict[str, int]:
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
        raise OsrmError(f"rank budget {budget} does not fit, expected {len(spectra)} to {most} in all")
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
