"""The merge of one layer: updates of the adapters -> method's rule -> recompression where one is due."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from osrm_cli.errors import OsrmError, first_line
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.reduced_rank import reduce_rank_for_inputs
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult, LayerUpdates, MaskedDelta
from osrm_cli.merging.plan import MergePlan


def merge_layer(
    plan: MergePlan,
    layer_data: LayerData,
    merged: Mapping[str, LayerResult],
    device: torch.device | str,
    layer: str,
) -> tuple[LayerResult, float]:
    """Merge one layer.

    Args:
        plan: What to merge, and how.
        layer_data: What its method needs beside the updates.
        merged: Results of the layers that stand before this one in ``layer_data.sequence``.
        device: Where to compute.
        layer: Full name.

    Returns:
        The result, and the share of its energy that is left after recompression; 1 if there was none.

    Raises:
        OsrmError: If a decomposition fails, as those of matrices with NaN or infinity do.
    """
    with _reporting_failed_merge(layer):
        method = plan.method
        if method.learns_weights and not plan.learned:
            raise ValueError(f"{method.name}: its weights have not been learned")
        if plan.shapes[layer].is_tensor:  # no rank to cut it to
            data = {} if method.beyond_layers else layer_data.for_layer(layer, merged)
            return method.load_beyond_layers()(plan.read_updates(layer, data, device), plan.options), 1.0
        updates = plan.read_updates(layer, layer_data.for_layer(layer, merged), device)
        return _recompress_merged_update(plan, updates, method.load()(updates, plan.options))


def _recompress_merged_update(plan: MergePlan, updates: LayerUpdates, result: LayerResult) -> tuple[LayerResult, float]:
    """Recompress a rule's result where the recipe says so, or where an adapter could not hold it.

    Where the inputs' second moments are at hand, by what the inputs see of it.
    """
    if isinstance(result, MaskedDelta):
        return result, 1.0
    rank, energy = plan.options.rank, plan.options.energy
    if isinstance(result, RowStream):
        rank = rank_of_dense_result(plan, updates.name)
    if updates.factors and isinstance(result, LowRank):  # they were cut before they were learned
        return result, 1.0
    if "rank" in plan.method.options and isinstance(result, LowRank):  # the rule has truncated by itself
        return result, result.kept_energy
    if rank is None and energy is None:
        return result, 1.0
    return reduce_rank_for_inputs(result, updates.second_moments, rank, energy)


def rank_of_dense_result(plan: MergePlan, layer: str) -> int | None:
    """The rank that a dense result is cut to: as named, or else the sum of the ranks where an adapter is due."""
    options = plan.options
    if plan.recipe.output == "adapter" and options.rank is None and options.energy is None:
        return sum(adapter.layers[layer].rank for adapter in plan.adapters if layer in adapter.layers)
    return options.rank


@contextmanager
def _reporting_failed_merge(layer: str) -> Iterator[None]:
    """Report a decomposition that fails as the user's error."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise OsrmError(
            f"{layer}: a decomposition fails: a weight is damaged or too large ({first_line(error)})",
            "osrm verify names files that have changed",
        ) from error
