"""Warnings where vLLM or llama.cpp would refuse a merged adapter that writes, or misread it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from osrm_cli.merging.merge import merge_adapters


def save(folder: Path, base: Path, **settings: object) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **{"r": 4, **settings})
    peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    peft_model.save_pretrained(str(folder))
    return folder


@pytest.mark.filterwarnings("ignore")  # of PEFT, that an embedding is saved
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, None),
        ({"modules_to_save": ["lm_head"]}, "vLLM and llama.cpp load no adapter with modules_to_save"),
        ({"r": 300}, "vLLM loads ranks up to 512, this one is 600: give --rank 512"),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}, "llama.cpp reads one lora_alpha for all layers"),
    ],
)
def test_what_servers_refuse(
    settings: dict[str, object], problem: str | None, tiny_writer: Callable[[str], Path], tmp_path: Path
) -> None:
    adapters = [save(tmp_path / name, tiny_writer("llama"), **settings) for name in ("a", "b")]
    found = merge_adapters(adapters, out=tmp_path / "merged").warnings
    warnings = [text for text in found if "vLLM" in text or "llama.cpp" in text]
    assert len(warnings) == (problem is not None)
    assert problem is None or warnings[0].startswith(problem)
