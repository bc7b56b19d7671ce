"""What ``merge_adapters`` returns: a merge summarized for people and programs, with its warnings."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from osrm_cli.adapters.config import TEXT_TASK_TYPES
from osrm_cli.merging.output.merged_folder import FolderContents
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.serving import list_serving_notes, list_serving_problems

_LOSSY = 0.95  # kept energy below this is worth a warning


@dataclass(frozen=True)
class MergeResult:
    """What ``merge_adapters`` did.

    Attributes:
        path: The folder that was written, or would be.
        summary: Method, options, adapters, rank and kept energy, as JSON has them.
        line: The same in one line.
        notes: What was learned from data.
        warnings: Reasons to doubt the result.
    """

    path: Path
    summary: Mapping[str, Any]
    line: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def describe_merge_plan(
    path: Path, plan: MergePlan, ranks: Mapping[float, int | None] = MappingProxyType({})
) -> MergeResult:
    """A merge that has not been carried out.

    Args:
        path: The folder that it would write.
        plan: The merge.
        ranks: By share of the energy, the rank that would keep it, see ``estimate_merged_ranks``.
    """
    names = [adapter.name for adapter in plan.adapters]
    options = dict(plan.recipe.options)
    words = {name: " ".join(value) if isinstance(value, list) else value for name, value in options.items()}
    settings = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in sorted(words.items()))
    tensors = sum(layer.is_tensor for layer in plan.shapes.values())
    summary = {
        "method": plan.method.name,
        "options": options,
        "as": plan.recipe.output,
        "adapters": names,
        "layers": len(plan.layers) - tensors,
        **({"other_tensors": tensors} if tensors else {}),
        **({"rank_to_keep": {f"{share:g}": rank for share, rank in ranks.items()}} if ranks else {}),
    }
    beside = f" and {tensors} other tensors" if tensors else ""
    line = f"{', '.join(names)} by {plan.method.name} ({settings}), {len(plan.layers) - tensors} layers{beside}"
    enough = [f"{share:.0%} at rank {rank or 'above a sixteenth of the width'}" for share, rank in ranks.items()]
    notes = [f"energy that an adapter would keep, from a few layers: {', '.join(enough)}"] if enough else []
    return MergeResult(path, summary, line, notes)


def describe_merge_result(
    path: Path,
    plan: MergePlan,
    contents: FolderContents,
    data_record: Mapping[str, Any],
    calibration: Mapping[str, Mapping[str, Any]],
    shared: Collection[str],
) -> MergeResult:
    """A merge that has been carried out.

    Args:
        path: The folder that was written.
        plan: What was merged.
        contents: What the folder holds.
        data_record: What the method read beside the adapters, see ``LayerData.record``.
        calibration: The fit of each task whose head was calibrated.
        shared: What the adapters have trained as a whole: tensors of base-model modules, or rows of them.
    """
    planned, kept = describe_merge_plan(path, plan), list(contents.kept.values())
    rank, least = max(contents.ranks.values(), default=None), min(kept)
    summary = {
        **planned.summary,
        **(data_record if plan.method.data_statistic else {}),
        "form": contents.form,
        "rank": rank,
        "kept_energy": {"least": least, "mean": sum(kept) / len(kept)},
        "path": str(path),
        **({"calibration": calibration} if calibration else {}),
    }
    energy = f", energy kept {least:.1%} to {max(kept):.1%}" if least < 1 else ", exact"
    line = planned.line + (f", rank {rank}" if rank is not None else "") + energy
    notes = [
        f"{task}: mean entropy {entropy['before']:.4f} before, {entropy['after']:.4f} after"
        for task, entropy in summary.get("entropy", {}).items()
    ]
    notes += [
        f"{task}: loss {loss['before']:.4f} before, {loss['after']:.4f} after"
        for task, loss in summary.get("loss", {}).items()
    ]
    notes += [
        f"{task}: distance to the single model {distance['before']:.3f} before, {distance['after']:.3f} after"
        for task, distance in summary.get("distance", {}).items()
    ]
    notes += [
        f"{task}: learned from a teacher on {teacher['base']}, by its {teacher['compared']}"
        for task, teacher in summary.get("teachers", {}).items()
    ]
    if shared:
        names = ", ".join(sorted(shared))
        notes.append(f"{names}: stored as a whole, carried over as is whatever the weights are")
    notes += [
        f"{task}: difference {row['before']:.4g} before calibration, {row['error']:.4g} after"
        + ("" if row["used"] else ": uncalibrated is kept")
        for task, row in calibration.items()
    ]
    if _is_served_adapter(plan, contents):
        notes += list_serving_notes(plan)
    return MergeResult(path, summary, line, notes, _list_merge_warnings(plan, contents, least, shared))


def _is_served_adapter(plan: MergePlan, contents: FolderContents) -> bool:
    """Whether the result is an adapter that writes text, which servers load as it is."""
    return contents.form == "adapter" and all(each.config.task_type in TEXT_TASK_TYPES for each in plan.adapters)


def _list_merge_warnings(plan: MergePlan, contents: FolderContents, least: float, shared: Collection[str]) -> list[str]:
    warnings = []
    if contents.form == "model" and any(layer.embedding for layer in plan.shapes.values()):
        warnings.append("an embedding was merged: where the output layer is tied to it, the outputs change too")
    if contents.form == "task-aware":
        warnings.append("this is not one model: every task needs its own mask, so its name must be known at inference")
    if _is_served_adapter(plan, contents):
        warnings += list_serving_problems(plan, contents.ranks, shared)
    if least < _LOSSY:
        warnings.append(
            f"recompression lost up to {1 - least:.1%} of a layer's energy; a higher --rank keeps more, "
            + ("none keeps all" if contents.form == "model" else "--as model keeps all")
        )
    return warnings
