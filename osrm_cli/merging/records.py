"""How a merged folder was made: ``osrm.json`` for the whole and for each task, ``merge.yaml``, and the model card."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.merging import record as card
from osrm_cli.merging.plan import Plan
from osrm_cli.merging.recipe import Entry
from osrm_cli.storage import hub, provenance
from osrm_cli.storage.provenance import Base

TASKS = "tasks"  # folder of one folder per task
HEAD = "head.safetensors"


def write(
    stage: Path,
    plan: Plan,
    base: Base | None,
    form: str,
    kept: Mapping[str, float],
    rescalers: Mapping[str, Mapping[str, float]],
    digests: Iterable[str],
) -> None:
    """Write ``osrm.json`` for the whole and for each task, ``merge.yaml`` and the model card.

    Args:
        stage: The folder that is being staged.
        plan: What was done.
        base: The base model, where it is known.
        form: See ``merged.Merged``.
        kept: Share of each layer's energy that is left.
        rescalers: Of a task-aware method, by task.
        digests: Of the adapters.
    """
    rows = zip(plan.adapters, plan.recipe.adapters, digests, strict=True)
    inputs = [_input(adapter, entry, digest) for adapter, entry, digest in rows]
    facts = provenance.record(
        "merge",
        {"method": plan.method.name, "options": plan.recipe.options, "as": plan.recipe.output},
        base=base,
        form=form,
        **plan.evidence.facts(),
    )
    facts["inputs"] = inputs
    tasks = {adapter.name: adapter.facts.get("task") for adapter in plan.adapters}
    provenance.write(stage, {**facts, "kept_energy": kept, "tasks": tasks})
    for adapter in plan.adapters:
        folder = stage / TASKS / adapter.name
        if folder.is_dir():
            own = {"task": tasks[adapter.name], "data": adapter.facts.get("data")}
            provenance.write(folder, {**facts, **own, "rescalers": rescalers.get(adapter.name)})
    plan.repeating.write(stage)
    (stage / "README.md").write_text(card.text(plan, form, kept, inputs), encoding="utf-8")


def dev(adapter: Adapter) -> dict[str, Any] | None:
    """What ``osrm train`` recorded of an adapter's own dev scores: examples, digest of the data, scores by metric."""
    try:
        found = json.loads((adapter.folder / "training.json").read_text(encoding="utf-8"))["dev"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("scores"), dict) else None


def _input(adapter: Adapter, entry: Entry, digest: str) -> dict[str, Any]:
    return {
        "task": adapter.name,
        "path": adapter.source,
        "commit": hub.commit(adapter.folder),
        "sha256": digest,
        "weight": entry.plain_weight,
        "dev": dev(adapter),
    }
