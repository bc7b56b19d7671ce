"""PEFT's ``add_weighted_adapter`` on one linear layer."""

import time

import torch
from peft import LoraConfig, get_peft_model

from benchmarks import dense
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.methods import find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions


def merge(kind: str, tasks: int, width: int, rank: int, kept: int | None = None) -> tuple[float, torch.Tensor]:
    """Merge the adapters of ``dense.factors`` in memory, float32.

    Args:
        kind: PEFT's ``combination_type``.
        tasks: Number of adapters.
        width: Of the layer.
        rank: Of the adapters.
        kept: Rank that PEFT truncates to; by default ``rank``.

    Returns:
        Seconds, and the merged update ``(d_out, d_in)``.
    """
    model = torch.nn.Sequential()
    model.add_module("q_proj", torch.nn.Linear(width, width, bias=False))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj"])
    wrapped = get_peft_model(model, config, adapter_name="task0")
    names = [f"task{i}" for i in range(tasks)]
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    layer = wrapped.base_model.model.q_proj
    with torch.no_grad():
        for name, (b, a) in zip(names, dense.factors(tasks, width, rank), strict=True):
            layer.lora_A[name].weight.copy_(a)
            layer.lora_B[name].weight.copy_(b)
    options = {"svd_rank": kept or rank} if kind.endswith("svd") else {}
    if kind.startswith(("ties", "magnitude")):
        options |= {"density": 0.2}
    start = time.perf_counter()
    wrapped.add_weighted_adapter(names, [1.0] * tasks, "merged", combination_type=kind, **options)
    seconds = time.perf_counter() - start
    return seconds, layer.get_delta_weight("merged").detach()


def ours(method: str, tasks: int, width: int, rank: int) -> torch.Tensor:
    """What our rule makes of the same factors, ``(d_out, d_in)``; only ``svd`` truncates."""
    updates = tuple(LowRank(b, a) for b, a in dense.factors(tasks, width, rank))
    names = tuple(f"task{i}" for i in range(tasks))
    layer = LayerUpdates("layer", names, updates, (1.0,) * tasks)
    result = find_method(method).load()(layer, MethodOptions(rank=rank if method == "svd" else None))
    return result.dense()


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of two updates, in units of the largest entry."""
    return float((first.double() - second.double()).abs().max() / second.double().abs().max())
