"""Rules that are linear in the updates, and the best truncation of such a sum: exact on factors."""

from dataclasses import replace

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.reduced_rank import reduce_rank_for_inputs
from osrm_cli.linalg.row_stream import Update, add_up_matrices
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions


def task_arith(layer: LayerUpdates, options: MethodOptions) -> Update:
    """``lambda * sum_t w_t dW_t`` (arXiv:2212.04089), as stacked factors of rank ``sum r_t``.

    Nothing is decomposed, so nothing is lost; equal to PEFT's ``cat`` where adapters have no rsLoRA.
    """
    return add_up_matrices(layer.updates).scaled(options.scale)


def average(layer: LayerUpdates, options: MethodOptions) -> Update:
    """``lambda * sum_t w_t dW_t / sum_t w_t`` (arXiv:2203.05482), as stacked factors of rank ``sum r_t``.

    The average of the products, not the product of averages: that one has cross terms between the adapters.

    Raises:
        OsrmError: If the weights add up to zero.
    """
    total = sum(layer.weights)
    if abs(total) <= 1e-12 * sum(map(abs, layer.weights)):
        raise OsrmError(f"the weights add up to {total:g}, an average needs another sum", "use task-arith")
    return add_up_matrices(layer.updates).scaled(options.scale / total)


def svd(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """The best approximation of ``task-arith`` at ``rank``, or at the rank that keeps ``energy`` (Eckart-Young).

    Without either, the largest rank among the inputs. Equal to PEFT's ``svd`` where adapters have no rsLoRA. With
    features at hand, the best for the inputs: least ``sum_t E_{x ~ t} ||(W - X) x||^2``.

    Raises:
        OsrmError: If there is neither, and an update is dense.
    """
    rank = options.rank
    if rank is None and options.energy is None:
        if layer.is_dense:
            raise OsrmError("svd of full models needs a rank", "give --rank 64, or --energy 0.95")
        rank = max(update.rank for update in layer.weighted)
    best, kept_energy = reduce_rank_for_inputs(task_arith(layer, options), layer.second_moments, rank, options.energy)
    return replace(best, kept_energy=kept_energy)
