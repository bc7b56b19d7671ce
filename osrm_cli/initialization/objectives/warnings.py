"""Why an objective may mean little for the features it was given: reasons as data, for the command to print."""

import torch

from osrm_cli.initialization.objectives.layer_problem import LayerProblem


def start_warnings(
    objective: str, request: LayerProblem, out_tokens: int | None = None, own_tokens: int | None = None
) -> list[str]:
    """Reasons for doubt, one line each; they name no layer, so that equal ones can be told once.

    Args:
        objective: Name of the objective.
        request: One layer's request.
        out_tokens: Tokens behind the other tasks' second moment, which bound its rank.
        own_tokens: Tokens behind the task's own.
    """
    found = []
    out, own = _rank(request, request.out_rows, out_tokens), _rank(request, request.own_rows, own_tokens)
    free = request.d_in - out
    if objective in ("osrm", "official"):
        if free >= request.rank and request.out_moment is not None:
            found.append(
                f"the other tasks' second moment has rank {out} of {request.d_in}: k is too small to tell directions "
                f"that they do not use from directions that were not seen; all {free} of these serve equally well"
            )
        elif free < request.rank and request.out_rows is not None:
            found.append(
                f"{out} rows of other tasks leave {max(free, 0)} of {request.d_in} directions free, rank "
                f"{request.rank} needs more: A is as orthogonal to them as can be, but not orthogonal"
            )
    if objective == "osrm-in" and free < request.rank:
        found.append(
            f"the other tasks leave {max(free, 0)} of {request.d_in} directions free, rank {request.rank} needs more: "
            "A keeps off the directions that hold 99 % of their energy instead"
        )
    if request.others_sketch_error * request.d_in > 1:
        found.append(
            "the sketches may hide more of the other tasks' energy in one direction than an average direction holds: "
            "their bound does not promise that A avoids more than a random one, take more rows"
        )
    if objective in ("osrm-in", "gevd", "eva") and own < request.rank:
        found.append(f"the task's own features have rank {own}, below rank {request.rank}: the rest of A is random")
    if objective == "gevd" and request.eps < 1e-6 and out < request.d_in:
        found.append(f"eps {request.eps:g} with a second moment of rank {out}: unseen directions count as free")
    return found


def _rank(request: LayerProblem, rows: torch.Tensor | None, tokens: int | None) -> int:
    bound = rows.shape[0] if rows is not None else tokens
    return request.d_in if bound is None else min(bound, request.d_in)
