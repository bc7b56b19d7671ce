"""Adapters with random factors on the tiny language models, as if they had been trained on the small text tasks."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from osrm_cli.storage import provenance
from osrm_cli.tasks.loading import load_split

TARGETS = {"t5": ["q", "v"], "gpt2": ["c_attn", "attn.c_proj"], "llama": ["q_proj", "v_proj"]}


def bare(base: Path) -> Any:
    """The language model as it is."""
    kind = AutoModelForSeq2SeqLM if "writer-t5" in base.name else AutoModelForCausalLM
    return kind.from_pretrained(base).eval()


def save(folder: Path, base: Path, data: Path, **settings: object) -> None:
    """Write the adapter of the task that the folder is named after, with what ``osrm train`` records."""
    family = next((name for name in TARGETS if f"writer-{name}" in base.name), "llama")
    model = bare(base)
    chosen = {"task_type": "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM", "target_modules": TARGETS[family], "r": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D
        adapter = get_peft_model(model, LoraConfig(**{**chosen, "fan_in_fan_out": family == "gpt2", **settings}))
    generator = torch.Generator().manual_seed(sum(folder.name.encode()))
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    adapter.save_pretrained(str(folder))
    task = load_split(folder.name, data, "train").task
    provenance.write_record(folder, {"task": task.to_dict(), "data": {"source": str(data)}})


def dense(folder: Path, base: Path) -> Any:
    """A PEFT folder merged into its base model's weights by PEFT."""
    return PeftModel.from_pretrained(bare(base), str(folder)).merge_and_unload().eval()
