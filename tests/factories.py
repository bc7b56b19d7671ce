"""Tiny real models and real PEFT adapters for the tests: built from configurations, no downloads."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from osrm_cli.adapters.adapter import Adapter

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

TARGETS = {
    "bert": ["query", "value"],
    "gpt2": ["c_attn", "attn.c_proj"],  # Conv1D, the second one square
    "llama": ["q_proj", "k_proj"],  # grouped heads: not square
    "t5": ["q", "v"],
}


def model(family: str, labels: int = 2) -> PreTrainedModel:
    """A classifier whose backbone is always the same."""
    torch.manual_seed(0)
    small = {"vocab_size": 60, "num_labels": labels, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "bert":
        config = BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, **small)
        return BertForSequenceClassification(config).eval()
    if family == "gpt2":
        return GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **small)).eval()
    if family == "llama":
        config = LlamaConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            **small,
        )
        return LlamaForSequenceClassification(config).eval()
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **small)
    return T5ForSequenceClassification(config).eval()


def adapted(family: str, seed: int, labels: int = 2, **settings: object) -> PeftModel:
    """A PEFT model whose factors and head are random, as if it had been trained."""
    chosen = {"task_type": "SEQ_CLS", "target_modules": TARGETS[family], "r": 4, **settings}
    if family == "gpt2":
        chosen.setdefault("fan_in_fan_out", True)
    if family == "t5":
        chosen.setdefault("modules_to_save", ["classification_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model(family, labels), LoraConfig(**chosen))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return peft_model.eval()


def save(folder: Path, family: str = "bert", seed: int = 1, labels: int = 2, **settings: object) -> PeftModel:
    """Write an adapter as PEFT writes it."""
    peft_model = adapted(family, seed, labels, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model.save_pretrained(str(folder))
    return peft_model


def load(folder: Path, family: str = "bert", labels: int = 2) -> PeftModel:
    """Load a folder with plain PEFT; any warning of PEFT is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT 0.21 asks transformers 5 for a property under its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return PeftModel.from_pretrained(model(family, labels), str(folder)).eval()


def delta(peft_model: PeftModel, layer: str, adapter: str = "default") -> torch.Tensor:
    """PEFT's own update of a layer as ``(d_out, d_in)``."""
    module = peft_model.base_model.model.get_submodule(layer)
    update = module.get_delta_weight(adapter).detach()
    transposed = isinstance(module.get_base_layer(), Conv1D | torch.nn.Embedding)
    return update.T if transposed else update


def dense(adapter: Adapter, layer: str) -> torch.Tensor:
    """An adapter's update in float64 from the file's own factors and PEFT's formula; zero where it has none."""
    if layer not in adapter.layers:
        raise KeyError(layer)
    return adapter.delta(layer, torch.float64).dense()


def inputs() -> dict[str, torch.Tensor]:
    """Three short texts as token numbers, right-padded."""
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 11, 2, 0], [12, 2, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def logits(classifier: torch.nn.Module) -> torch.Tensor:
    """Logits on ``inputs``."""
    with torch.no_grad():
        return classifier(**inputs()).logits
