"""PEFT's own conversion of an update to LoRA, on the difference of two models: a full SVD of each linear layer.

PEFT converts its other adapters so, layer by layer; the models are loaded as transformers loads them. Called as
``python -m benchmarks.peers.convert_to_lora BASE TUNED RANK OUT``.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora.conversion import _convert_module_to_lora
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@dataclass
class Difference:
    """What the conversion asks of a layer."""

    base: torch.nn.Linear
    tuned: torch.nn.Linear

    def get_base_layer(self) -> torch.nn.Linear:
        return self.base

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        return self.tuned.weight - self.base.weight


def main() -> None:
    base_dir, tuned_dir, rank, out = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base_dir, tuned_dir))
    layers = [
        name for name, part in base.named_modules() if isinstance(part, torch.nn.Linear) and ".layers." in f".{name}"
    ]
    tensors = {}
    for name in layers:
        layer = Difference(base.get_submodule(name), tuned.get_submodule(name))
        A, B, _ = _convert_module_to_lora(layer, rank)
        tensors |= {
            f"base_model.model.{name}.lora_A.weight": A,
            f"base_model.model.{name}.lora_B.weight": B,
        }
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    LoraConfig(r=rank, lora_alpha=rank, target_modules=layers).save_pretrained(str(out))


if __name__ == "__main__":
    main()
