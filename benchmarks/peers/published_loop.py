"""The loop of the code published with OSRM: batches of one, padded to 128, one hook for each target layer.

Called as ``python -m benchmarks.peers.published_loop MODEL DATA OUT``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.peers import texts
from osrm_cli.tasks.task import TaskSplit


class Watched:
    """Keeps the mean input of each example at every query and value layer."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {}
        for name, module in model.named_modules():
            if name.endswith((".query", ".value", ".q", ".v", ".q_proj", ".v_proj")):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(_module: torch.nn.Module, args: tuple[torch.Tensor], _output: torch.Tensor) -> None:
            self.seen.setdefault(name, []).append(args[0].detach().mean(dim=(0, 1)).cpu())

        return keep

    def means(self) -> dict[str, torch.Tensor]:
        """The mean over the examples, and a clean slate."""
        found = {name: torch.stack(rows).mean(0) for name, rows in self.seen.items()}
        self.seen = {}
        return found


def features(model: torch.nn.Module, tokenizer: Any, watched: Watched, data: TaskSplit) -> dict[str, torch.Tensor]:
    """Mean features of one task."""
    with torch.no_grad():
        for example in data.examples:
            model(
                **tokenizer(*example.texts, padding="max_length", max_length=128, truncation=True, return_tensors="pt")
            )
    return watched.means()


def main() -> None:
    place, data, out = map(Path, sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    watched = Watched(model)
    out.mkdir()
    for name, examples in texts.read(data).items():
        save_file(features(model, tokenizer, watched, examples), out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
