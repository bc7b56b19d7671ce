"""PEFT's ``add_weighted_adapter`` on adapters of one matrix, from their folders to a folder.

Called as ``python -m benchmarks.peers.add_weighted_adapter KIND WEIGHT WIDTH OUT ADAPTER...``.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel

NAME = "model.layers.0.self_attn.q_proj"
KEPT = 32


def main() -> None:
    kind, weight, width, out, *adapters = sys.argv[1:]
    with torch.device("meta"):
        linear: torch.nn.Module = torch.nn.Linear(int(width), int(width), bias=False)
    linear = linear.to_empty(device="cpu")  # its weight takes no part
    module = linear
    for name in reversed(NAME.split(".")):
        parent = torch.nn.Module()
        parent.add_module(name, module)
        module = parent
    names = [Path(adapter).name for adapter in adapters]
    model = PeftModel.from_pretrained(module, adapters[0], names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter, name)
    options: dict[str, float] = {"svd_rank": KEPT} if kind.endswith("svd") else {}
    if kind in ("ties_svd", "magnitude_prune_svd"):
        options["density"] = 0.2
    model.add_weighted_adapter(names, [float(weight)] * len(names), "merged", combination_type=kind, **options)
    model.save_pretrained(out, selected_adapters=["merged"])


if __name__ == "__main__":
    main()
