"""A merge in words: what it is to do, what came of it, and what to doubt."""

from typing import Any

from osrm_cli.merging.merged_folder import MergeResult
from osrm_cli.merging.plan import MergePlan

_LOSSY = 0.95  # kept energy below this is worth a warning


def plan_dict(plan: MergePlan) -> dict[str, Any]:
    """What is to be done, as JSON has it."""
    return {
        "method": plan.method.name,
        "options": dict(plan.recipe.options),
        "as": plan.recipe.output,
        "adapters": [adapter.name for adapter in plan.adapters],
        "layers": len(plan.layers),
    }


def plan_line(plan: MergePlan) -> str:
    """What is to be done, in one line."""
    names = ", ".join(adapter.name for adapter in plan.adapters)
    settings = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in sorted(plan.recipe.options.items()))
    return f"{names} by {plan.method.name} ({settings}), {len(plan.layers)} layers"


def result_dict(plan: MergePlan, done: MergeResult) -> dict[str, Any]:
    """What was done, as JSON has it."""
    kept = list(done.kept.values())
    return {
        **plan_dict(plan),
        **(plan.layer_data.record() if plan.method.data_statistic else {}),
        "form": done.form,
        "rank": max(done.ranks.values(), default=None),
        "kept_energy": {"least": min(kept), "mean": sum(kept) / len(kept)},
    }


def rank_and_energy(done: MergeResult) -> str:
    """Rank and kept energy, to go on from ``line``."""
    kept = done.kept.values()
    rank = f", rank {max(done.ranks.values())}" if done.ranks else ""
    return rank + (f", energy kept {min(kept):.1%} to {max(kept):.1%}" if min(kept) < 1 else ", exact")


def merge_warnings(plan: MergePlan, done: MergeResult) -> list[str]:
    """What whoever uses the result should know."""
    found, least = [], min(done.kept.values())
    if done.form == "model" and plan.embeddings:
        found.append("an embedding was merged: where the output layer is tied to it, the outputs change too")
    if done.form == "task-aware":
        found.append("this is not one model: every task needs its own mask, so its name must be known at inference")
    if least < _LOSSY:
        found.append(
            f"recompression lost up to {1 - least:.1%} of a layer's energy; a higher --rank keeps more, "
            + ("none keeps all" if done.form == "model" else "--as model keeps all")
        )
    return found
