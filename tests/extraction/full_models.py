"""Base models and fully fine-tuned models of them, on disk: every weight random, as if it had been trained."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests import factories

SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def is_linear(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter is the weight of a linear layer of the backbone."""
    owner, _, attribute = name.rpartition(".")
    in_backbone = name.startswith(f"{model.base_model_prefix}.")
    return in_backbone and attribute == "weight" and isinstance(model.get_submodule(owner), torch.nn.Linear | Conv1D)


def tune(
    model: PreTrainedModel, seed: int, changes: Callable[[PreTrainedModel, str], bool], size: float = 0.05
) -> PreTrainedModel:
    """Add random numbers to the parameters that ``changes`` picks; a head gets new values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if changes(model, name) or not name.startswith(f"{model.base_model_prefix}."):
                parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def save_classifiers(
    folder: Path, family: str, *seeds: int, changes: Callable[[PreTrainedModel, str], bool] = is_linear, labels: int = 2
) -> list[PreTrainedModel]:
    """Write ``base``, a bare model, and a classifier ``tuned<seed>`` for each seed."""
    base = factories.model(family, labels)
    getattr(base, base.base_model_prefix).save_pretrained(str(folder / "base"))
    tuned = [tune(factories.model(family, labels), seed, changes) for seed in seeds]
    for seed, model in zip(seeds, tuned, strict=True):
        model.save_pretrained(str(folder / f"tuned{seed}"))
    return tuned


def writer(family: str, **settings: object) -> PreTrainedModel:
    """A small language model, always the same."""
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SMALL, **settings)).eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(intermediate_size=24, **sizes, **SMALL, **settings)).eval()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor in float64."""
    return {
        name: tensor.double()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def text_logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits of a language model on one text."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, 2]])).logits.float()
