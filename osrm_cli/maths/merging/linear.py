"""Rules that are linear in the updates, or the best truncation of such a sum: exact on factors."""

from __future__ import annotations

from osrm_cli.errors import OsrmError
from osrm_cli.maths.lowrank import LowRank, stack, truncate
from osrm_cli.maths.merging.inputs import LayerUpdates, Options


def task_arith(layer: LayerUpdates, options: Options) -> LowRank:
    """``lambda * sum_t w_t dW_t``, as stacked factors (arXiv:2212.04089).

    Returns:
        Factors of rank ``sum r_t``: nothing is decomposed, so nothing is lost.
    """
    return stack(layer.weighted).scaled(options.scale)


def average(layer: LayerUpdates, options: Options) -> LowRank:
    """``lambda * sum_t w_t dW_t / sum_t w_t``, as stacked factors (arXiv:2203.05482).

    The average of the products, not the product of averages, which has cross terms between the adapters.

    Raises:
        OsrmError: If the weights add up to zero.
    """
    total = sum(layer.weights)
    if abs(total) < 1e-12 * sum(map(abs, layer.weights)) or total == 0:
        raise OsrmError(f"{layer.name}: the weights add up to {total:g}, an average needs a sum other than zero")
    return stack(layer.weighted).scaled(options.scale / total)


def svd(layer: LayerUpdates, options: Options) -> LowRank:
    """The best approximation of ``task-arith`` at ``rank``, or at the rank that keeps ``energy`` (Eckart-Young).

    Without either, the largest rank among the inputs.
    """
    rank = options.rank
    if rank is None and options.energy is None:
        rank = max(update.rank for update in layer.updates)
    return truncate(task_arith(layer, options), rank, options.energy)[0]
