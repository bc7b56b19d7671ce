"""Record of a merge: ``osrm.json`` and the model card."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.merging.plan import Heads, MergePlan
from osrm_cli.merging.recipes.recipe import RecipeEntry
from osrm_cli.storage import provenance
from osrm_cli.storage.records import BaseModelId

TASKS_FOLDER = "tasks"  # folder of one folder per task
HEAD_NAME = "head.safetensors"

_LIBRARIES = {"adapter": "peft", "model": "transformers"}  # as the hub calls them
_AUTO_CLASSES = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}
_LOADING = {
    "adapter": """```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={labels})
model = PeftModel.from_pretrained(base, "tasks/{task}")
```""",
    "headless": "Load it with `peft.PeftModel.from_pretrained(base, folder)`.",
    "text": """```python
from peft import PeftModel
from transformers import {auto}

model = PeftModel.from_pretrained({auto}.from_pretrained("{base}"), ".")
```""",
    "model": "The folder is a model for `transformers`; each task's head lies in `tasks/<task>/head.safetensors`.",
    "task-aware": "**This is not one model.** `unified.safetensors` holds one update; each task needs its own mask and "
    "factor from `tasks/<task>/`, so the task must be known at inference.",
}


def merge_card_text(
    plan: MergePlan, form: str, kept: Mapping[str, float], inputs: Iterable[Mapping[str, Any]], heads: Heads
) -> str:
    """The model card: adapters, method, options and the known scores."""
    base = next((adapter.config.base_model for adapter in plan.adapters if adapter.config.base_model), None)
    rows = "\n".join(_merge_card_row(source) for source in inputs)
    values = [
        (name.replace("_", "-"), each)
        for name, value in sorted(plan.recipe.options.items())
        for each in (value if isinstance(value, list) else [value])
    ]
    flags = " ".join(f"--{name} {value}" for name, value in values)
    source = (
        f" ([arXiv:{plan.method.source}](https://arxiv.org/abs/{plan.method.source}))" if plan.method.source else ""
    )
    least = min(kept.values())
    energy = f" Recompression kept at least {least:.1%} of each layer's energy." if least < 1 else ""
    front = f"base_model: {base}\n" if base else ""
    front += f"library_name: {_LIBRARIES[form]}\n" if form in _LIBRARIES else ""
    return f"""---
{front}tags:
- lora
- merge
---

# {len(plan.adapters)} {"models" if plan.has_full_models else "adapters"} merged with {plan.method.name}

{plan.method.summary.capitalize()}{source}.{energy}

| task | adapter | weight | dev score alone |
| --- | --- | --- | --- |
{rows}

Made by `osrm merge --method {plan.method.name} {flags}`; `merge.yaml` repeats it, `osrm.json` records every input.

{_merge_loading_instructions(plan, form, base, heads)}
"""


def _merge_loading_instructions(plan: MergePlan, form: str, base: str | None, heads: Heads) -> str:
    """Instructions for loading the result, with the first task that has a head as the example."""
    task, head = next(((task, head) for task, head in heads.items() if head), (plan.adapters[0].name, {}))
    auto = None
    if form == "adapter" and not head:
        kinds = {adapter.config.task_type for adapter in plan.adapters}
        auto = _AUTO_CLASSES.get(kinds.pop() or "") if len(kinds) == 1 else None
        form = "text" if auto else "headless"
    # The layer of a head that has the fewest rows is the one that has a row per class.
    rows = min((len(tensor) for name, tensor in head.items() if name.endswith(".weight")), default=2)
    return _LOADING[form].format(base=base or "...", labels=rows, task=task, auto=auto)


def _merge_card_row(source: Mapping[str, Any]) -> str:
    dev_scores = (source["dev"] or {}).get("scores", {})
    scores = ", ".join(f"{name} {value:.4g}" for name, value in sorted(dev_scores.items())) or "-"
    weight = "by layer" if isinstance(source["weight"], Mapping) else source["weight"]
    return f"| {source['task']} | {source['path']} | {weight} | {scores} |"


def write_merge_record(
    stage: Path,
    plan: MergePlan,
    data_record: Mapping[str, Any],
    base: BaseModelId | None,
    form: str,
    kept: Mapping[str, float],
    rescalers: Mapping[str, Mapping[str, float]],
    inputs: Sequence[Mapping[str, Any]],
    heads: Heads,
) -> None:
    """Write ``osrm.json`` for the whole and for each task, and the model card.

    Args:
        stage: The folder that is being staged.
        plan: The merge.
        data_record: What was read beside the adapters, see ``LayerData.record``.
        base: The base model, where it is known.
        form: See ``FolderContents``.
        kept: Share of each layer's energy that is left.
        rescalers: Of a task-aware method, by task.
        inputs: The adapters, see ``describe_merge_input``.
        heads: Of the tasks.
    """
    facts = provenance.make_artifact_record(
        "merge",
        {"method": plan.method.name, "options": plan.recipe.options, "as": plan.recipe.output},
        base=base,
        form=form,
        **data_record,
    )
    facts["inputs"] = inputs
    tasks = {adapter.name: adapter.record.get("task") for adapter in plan.adapters}
    provenance.write_record(stage, {**facts, "kept_energy": kept, "tasks": tasks})
    for adapter in plan.adapters:
        folder = stage / TASKS_FOLDER / adapter.name
        if folder.is_dir():
            own = {"task": tasks[adapter.name], "data": adapter.record.get("data")}
            provenance.write_record(folder, {**facts, **own, "rescalers": rescalers.get(adapter.name)})
    (stage / provenance.CARD_NAME).write_text(merge_card_text(plan, form, kept, inputs, heads), encoding="utf-8")


def describe_merge_input(adapter: Adapter, entry: RecipeEntry) -> dict[str, Any]:
    """One adapter with its digest, weight and dev scores, as ``osrm.json`` and the card name it."""
    return {
        "task": adapter.name,
        "path": adapter.source,
        "commit": adapter.commit,
        "sha256": adapter.sha256(),
        "weight": entry.weight,
        "dev": adapter.dev_scores,
        **{key: adapter.record[key] for key in ("template", "data") if "template" in adapter.record},
    }
