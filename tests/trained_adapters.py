"""Adapters with random factors and heads on the tiny base models, as if they had been trained on the small tasks."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from osrm_cli.merging.from_data import samples
from osrm_cli.merging.from_data.gather import load_task_models
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.progress import no_progress
from osrm_cli.storage import provenance
from osrm_cli.tasks.loading import load_split

TARGETS = {
    "bert": ["query", "value"],
    "gpt2": ["c_attn", "attn.c_proj"],
    "t5": ["q", "v"],
    "llama": ["q_proj", "v_proj"],
}
HEADS = {"t5": ["classification_head"]}
LABELS = {"mood": 2, "pair": 3, "score": 1}


def save(folder: Path, base: Path, family: str, data: Path, **settings: object) -> None:
    """Write the adapter of the task that the folder is named after, with what ``osrm train`` records."""
    chosen = {"task_type": "SEQ_CLS", "target_modules": TARGETS[family], "modules_to_save": HEADS.get(family), "r": 3}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS[folder.name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D
        adapter = get_peft_model(model, LoraConfig(**{**chosen, "fan_in_fan_out": family == "gpt2", **settings}))
    generator = torch.Generator().manual_seed(sum(folder.name.encode()))
    for name, parameter in adapter.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    adapter.save_pretrained(str(folder))
    task = load_split(folder.name, data, "train").task
    provenance.write_record(folder, {"task": task.to_dict(), "data": {"source": str(data)}})


def models(method: str, paths: Sequence[Path], base: Path, **options: object) -> tuple[MergePlan, list[TaskModel]]:
    """A plan and the tasks' classifiers on the CPU."""
    plan = MergePlan.of(MergeRecipe(method, tuple(RecipeEntry(str(path)) for path in paths), options))
    saved = plan.read_saved_modules()
    return plan, load_task_models(
        plan, samples.draw_merge_samples(plan, saved.heads), saved, base, torch.device("cpu"), no_progress
    )


def dense(folder: Path, base: Path, task: str) -> PreTrainedModel:
    """A PEFT folder merged into its base model's weights by PEFT."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS[task])
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()


def bare(base: Path, task: str) -> PreTrainedModel:
    """The base model with a head of its own for a task's classes."""
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS[task]).eval()
