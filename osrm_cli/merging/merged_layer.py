"""The merge itself, layer by layer: updates of the adapters -> method's rule -> recompression where one is due."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.parallel import map_in_order
from osrm_cli.linalg.reduced_rank import truncate_for_inputs
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.linalg.truncation import truncate
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult, LayerUpdates, MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.progress import Advance


@dataclass(frozen=True)
class MergedLayer:
    """One layer's result.

    Attributes:
        name: Full name of the layer.
        result: Factors, the rows of a dense ``(d_out, d_in)``, or a unified update with masks.
        kept: Share of the energy that is left after recompression; 1 if there was none.
    """

    name: str
    result: LayerResult
    kept: float = 1.0


def merge_layers(
    plan: MergePlan,
    layer_data: LayerData,
    layers: Sequence[str],
    jobs: int = 1,
    device: torch.device | str = "cpu",
    advance: Advance = lambda _: None,
) -> Iterator[MergedLayer]:
    """Merge layers one by one and yield them in the order of ``layers``.

    Where the data has a sequence, all layers are merged in that order first and their results kept: factors.

    Args:
        plan: What to merge, and how.
        layer_data: What its method needs beside the updates.
        layers: Names of layers; all of ``plan.layers`` in whatever order they are to be written.
        jobs: Layers that are computed at a time, each in a thread.
        device: Where to compute.
        advance: Called with 1 after each layer.
    """
    if plan.method.learns_weights and not plan.learned:
        raise ValueError(f"{plan.method.name}: its weights have not been learned")
    rule, beyond_layers = plan.method.load(), plan.method.load_beyond_layers()
    results: dict[str, LayerResult] = {}
    ordered: Iterator[MergedLayer]

    def merge_one(layer: str) -> MergedLayer:
        if plan.shapes[layer].is_tensor:  # no rank to cut it to
            data = {} if plan.method.beyond_layers else layer_data.for_layer(layer, results)
            return MergedLayer(layer, beyond_layers(plan.read_updates(layer, data, device), plan.options))
        updates = plan.read_updates(layer, layer_data.for_layer(layer, results), device)
        return _recompress(plan, updates, rule(updates, plan.options))

    if layer_data.sequence:
        merged = {}
        for name in layer_data.sequence:
            merged[name] = merge_one(name)
            results[name] = merged[name].result
        ordered = (merged[name] for name in layers)
    else:
        ordered = map_in_order(merge_one, layers, jobs)
    for layer in ordered:
        yield layer
        advance(1)


def estimate_ranks(
    plan: MergePlan, layer_data: LayerData, shares: Sequence[float], device: torch.device | str = "cpu"
) -> dict[float, int | None]:
    """The rank that keeps each share of the energy of a dense result, from the first, middle and last layer.

    Args:
        plan: What would be merged.
        layer_data: What its method needs beside the updates.
        shares: Of ``||W||_F^2``.
        device: Where to compute.

    Returns:
        By share, the largest rank among the layers; ``None`` where more than a sixteenth of a width above 1024 would
        not do, so far as is looked. Empty for a method whose result is an adapter as it is, or that reads data.
    """
    if plan.method.exact or plan.method.is_task_aware or plan.method.data_statistic or plan.has_full_models:
        return {}
    rule, spectra = plan.method.load(), []
    for layer in dict.fromkeys(plan.layers[place * (len(plan.layers) - 1) // 2] for place in range(3)):
        result = rule(plan.read_updates(layer, layer_data.for_layer(layer, {}), device), plan.options)
        if isinstance(result, RowStream):
            few = min(result.shape) // 16 if min(result.shape) > 1024 else None
            best, kept = truncate(result, few)
            energies = best.A.square().sum(1).square()  # of balanced factors
            spectra.append(kept * energies.cumsum(0) / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny))
    return {share: _rank_for(spectra, share) for share in shares} if spectra else {}


def _rank_for(spectra: Sequence[torch.Tensor], share: float) -> int | None:
    ranks = [int((kept < share).sum()) + 1 for kept in spectra]
    enough = all(rank <= len(kept) for rank, kept in zip(ranks, spectra, strict=True))
    return max(ranks) if enough else None


def _recompress(plan: MergePlan, updates: LayerUpdates, result: LayerResult) -> MergedLayer:
    """Recompress a rule's result where the recipe says so, or where an adapter could not hold it.

    Where the inputs' second moments are at hand, by what the inputs see of it.
    """
    layer = updates.name
    if isinstance(result, MaskedDelta):
        return MergedLayer(layer, result)
    rank, energy = plan.options.rank, plan.options.energy
    if updates.factors and isinstance(result, LowRank):  # they were cut before they were learned
        return MergedLayer(layer, result)
    if "rank" in plan.method.options and isinstance(result, LowRank):  # the rule has truncated by itself
        return MergedLayer(layer, result, result.kept_energy)
    if isinstance(result, RowStream) and plan.recipe.output == "adapter" and rank is None and energy is None:
        rank = sum(adapter.layers[layer].rank for adapter in plan.adapters if layer in adapter.layers)
    if rank is None and energy is None:
        return MergedLayer(layer, result)
    return MergedLayer(layer, *truncate_for_inputs(result, updates.second_moments, rank, energy))
