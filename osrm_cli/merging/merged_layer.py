"""The merge itself: all layers, in the order in which they are wanted."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from osrm_cli.linalg.parallel import map_in_order, return_free_memory
from osrm_cli.linalg.row_stream import FEW, NEAR, RowStream, truncate_rank
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.single_layer import merge_layer, rank_of_dense_result
from osrm_cli.progress import Progress, no_progress

SMALL = 1 << 22  # entries of a weight or its inputs' second moment, a few of which are held for each layer


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
    jobs: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> Generator[MergedLayer]:
    """Merge layers one by one and yield them in the order of ``layers``.

    Where the data has a sequence, all layers are merged in that order first and their results kept: factors.

    Args:
        plan: What to merge, and how.
        layer_data: What its method needs beside the updates.
        layers: Names of layers; all of ``plan.layers`` in whatever order they are to be written.
        jobs: Layers that are computed at a time, each in a thread; by default see ``_layers_at_a_time``.
        device: Where to compute.
        progress: Draws a bar.
    """
    results: dict[str, LayerResult] = {}
    merge_one = partial(merge_layer, plan, layer_data, results, device)
    small = _largest_matrix(plan, layers) <= SMALL
    workers = jobs or _layers_at_a_time(plan, layers, small, torch.device(device))
    with progress(f"merge {plan.method.name}", len(layers), "layers") as advance:
        if layer_data.sequence:
            kept = {}
            for name in layer_data.sequence:
                results[name], kept[name] = merge_one(name)
                advance(1)
            yield from (MergedLayer(name, results[name], kept[name]) for name in layers)
        else:
            merged = map_in_order(merge_one, layers, workers, ahead=0 if jobs else 1)
            for name, (result, share) in zip(layers, merged, strict=True):
                yield MergedLayer(name, result, share)
                advance(1)
                if not small:
                    return_free_memory()


def _largest_matrix(plan: MergePlan, layers: Sequence[str]) -> int:
    """Entries of the largest weight, or second moment of its inputs."""
    shapes = [plan.shapes[layer] for layer in layers]
    return max((max(shape.d_out, shape.d_in) * shape.d_in for shape in shapes), default=0)


def _layers_at_a_time(plan: MergePlan, layers: Sequence[str], small: bool, device: torch.device) -> int:
    """As many as torch has threads where layers are small: one layer's steps are too short to share out among them.

    Of large ones two, so that threads have work while one layer takes steps that are not shared out; one where matrices
    of their size are held, or a model's weights are written, for which all threads form rows.
    """
    if device.type != "cpu":
        return 1
    if small:
        return torch.get_num_threads()
    alone = plan.recipe.output != "adapter" or _holds_matrices(plan, layers)
    return 1 if alone else min(2, torch.get_num_threads())


def _holds_matrices(plan: MergePlan, layers: Sequence[str]) -> bool:
    """Whether the merge of a layer may hold more than factors and a few rows."""
    method = plan.method
    if plan.reads_features or plan.has_full_models or method.data_statistic or method.is_task_aware:
        return True
    if method.exact:
        return False
    sides = {layer: min(plan.shapes[layer].d_out, plan.shapes[layer].d_in) for layer in layers}
    cut_exactly = any((rank_of_dense_result(plan, layer) or 0) > side // FEW for layer, side in sides.items())
    return plan.options.energy is not None or cut_exactly


def estimate_merged_ranks(
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
            few = min(result.shape) // FEW if min(result.shape) > 1024 else None
            best, kept = truncate_rank(result, few, tolerance=NEAR)
            energies = best.A.square().sum(1).square()  # of balanced factors
            spectra.append(kept * energies.cumsum(0) / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny))
    return {share: _merged_rank_for_share(spectra, share) for share in shares} if spectra else {}


def _merged_rank_for_share(spectra: Sequence[torch.Tensor], share: float) -> int | None:
    ranks = [int((kept < share).sum()) + 1 for kept in spectra]
    enough = all(rank <= len(kept) for rank, kept in zip(ranks, spectra, strict=True))
    return max(ranks) if enough else None
