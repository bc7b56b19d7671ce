"""Reasons to doubt an initialization: too few tokens, rows or rank."""

from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg.second_moment import SecondMoment


def start_warnings(
    objective: str, problem: LayerProblem, out_tokens: int | None = None, own_tokens: int | None = None
) -> list[str]:
    """Reasons for doubt, one line each; they do not name the layer, so that equal ones need be printed only once.

    Args:
        objective: Name of the objective.
        problem: One layer's problem.
        out_tokens: Tokens behind the other tasks' second moment, which bound its rank.
        own_tokens: Tokens behind the task's own.
    """
    warnings = []
    out, own = _largest_rank(problem, problem.others, out_tokens), _largest_rank(problem, problem.own, own_tokens)
    free = problem.d_in - out
    if objective in ("osrm", "official"):
        if free >= problem.rank and problem.others is not None and not problem.others.factored:
            warnings.append(
                f"too few tokens of other tasks ({out}) for width {problem.d_in}: unused directions cannot be told "
                f"from unseen ones, all {free} of these serve equally well; increase --samples"
            )
        elif free < problem.rank and problem.others is not None and problem.others.factored:
            warnings.append(
                f"{out} rows of other tasks leave {max(free, 0)} of {problem.d_in} directions unused, fewer than rank "
                f"{problem.rank}: A is as orthogonal to them as possible, but not orthogonal"
            )
    if objective == "osrm-in" and free < problem.rank:
        warnings.append(
            f"the other tasks leave {max(free, 0)} of {problem.d_in} directions unused, fewer than rank "
            f"{problem.rank}: A is orthogonal to the directions that hold 99 % of their energy instead"
        )
    if problem.others_sketch_error * problem.d_in > 1:
        warnings.append(
            "the sketches may hide more of the other tasks' energy in one direction than an average direction holds: "
            "their bound does not guarantee that A interferes less than a random one; take more rows"
        )
    if objective in ("osrm-in", "gevd", "eva") and own < problem.rank:
        warnings.append(f"the task's own features have rank {own}, below rank {problem.rank}: the rest of A is random")
    if objective == "gevd" and problem.eps < 1e-6 and out < problem.d_in:
        warnings.append(f"eps {problem.eps:g} with a second moment of rank {out}: unseen directions count as unused")
    return warnings


def _largest_rank(problem: LayerProblem, moment: SecondMoment | None, tokens: int | None) -> int:
    """The rank that a second moment can have at most."""
    bound = tokens if moment is None or moment.row_count is None else moment.row_count
    return problem.d_in if bound is None else min(bound, problem.d_in)
