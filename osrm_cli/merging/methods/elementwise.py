"""Rules on the entries of the updates: sparsify each, then add, or elect a sign and combine the entries that agree.

Results are dense. The same functions serve the core space and the shared basis of KnOTS, where "entry" means a
coordinate.
"""

import torch
from torch import Tensor

from osrm_cli.merging.methods.layer_updates import LayerUpdates, MaskedDelta
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.row_blocks import combine_row_blocks, elected_sign, row_blocks, sum_rows
from osrm_cli.merging.methods.sparsify import drop_by_magnitude, drop_randomly, drop_tails, keep_largest


def ties(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """TIES (arXiv:2306.01708): trim each ``w_t dW_t`` to its ``density`` largest entries, elect signs, merge.

    ``x_t = trim(w_t dW_t)``, ``gamma = sign(sum_t x_t)``, result ``lambda * mean {x_t : sign(x_t) = gamma}``, or their
    sum. Weights act before the election, as in mergekit; in PEFT after it. The mean divides by the number of entries,
    as in PEFT and the authors' code; in mergekit by their weights. One adapter is itself at density 1; below, it is
    its trimmed self. Not linear in the weights.
    """
    keep = [keep_largest(update, options.density) for update in layer.weighted]
    return options.scale * combine_row_blocks(layer.weighted, lambda blocks: elected(blocks, options.aggregate), keep)


def magnitude(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """``lambda * sum_t trim(w_t dW_t)``: each update reduced to its ``density`` largest entries, then added.

    What PEFT calls ``magnitude_prune``. One adapter is itself at density 1.
    """
    keep = [keep_largest(update, options.density) for update in layer.weighted]
    return options.scale * combine_row_blocks(layer.weighted, sum_rows, keep)


def breadcrumbs(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """Model Breadcrumbs (arXiv:2312.06795): ``lambda * sum_t m_t * w_t dW_t``, ``m_t`` without both tails.

    ``outliers`` of the largest entries and all but the ``density`` next ones are dropped. One adapter is itself at
    density 1, where no outlier is dropped.
    """
    keep = [drop_tails(update, options.density, options.outliers) for update in layer.weighted]
    return options.scale * combine_row_blocks(layer.weighted, sum_rows, keep)


def dare(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """DARE (arXiv:2311.03099): ``lambda * sum_t m_t * w_t dW_t / density``, ``m_t`` Bernoulli(``density``).

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1.
    """
    keep = [drop_randomly(options, layer.name, adapter) for adapter in layer.adapters]
    return options.scale * combine_row_blocks(layer.weighted, sum_rows, keep)


def dare_ties(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """DARE's random drop in the place of TIES's trimming; then TIES's election and mean (arXiv:2311.03099).

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1. Not
    linear in the weights.
    """
    keep = [drop_randomly(options, layer.name, adapter) for adapter in layer.adapters]
    return options.scale * combine_row_blocks(layer.weighted, lambda blocks: elected(blocks, options.aggregate), keep)


def della(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """DELLA (arXiv:2406.11617): drop small entries more often than large ones, rescale, elect signs, merge as in TIES.

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1. Not
    linear in the weights.
    """
    keep = [drop_by_magnitude(options, layer.name, adapter) for adapter in layer.adapters]
    return options.scale * combine_row_blocks(layer.weighted, lambda blocks: elected(blocks, options.aggregate), keep)


def elected(blocks: Tensor, aggregate: str) -> Tensor:
    """The mean, or the sum, of the entries that have the elected sign; overwrites ``blocks``."""
    sign = elected_sign(blocks)
    agreeing = blocks.mul_(sign).clamp_min_(0)
    total = agreeing.sum(0) * sign
    return total if aggregate == "sum" else total / agreeing.sign_().sum(0).clamp_min_(1)


def consensus(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """Consensus merging with TALL masks (arXiv:2405.07813): the sum, where enough tasks use the entry.

    ``W = sum_t w_t dW_t``; task ``t`` uses an entry if ``|w_t dW_t| >= mask_scale * |W - w_t dW_t|``; result
    ``lambda * W`` on the entries that ``agreement`` tasks use (all tasks, if there are fewer), else 0. The paper tunes
    ``mask_scale`` per task between 0.2 and 0.6. Not linear in the weights.
    """
    needed = min(options.agreement, len(layer.adapters))

    def combine(blocks: Tensor) -> Tensor:
        total = blocks.sum(0)
        users = (blocks.abs() >= options.mask_scale * (total - blocks).abs()).to(blocks.dtype).sum(0)
        return total * (users >= needed)

    return options.scale * combine_row_blocks(layer.weighted, combine)


def emr(layer: LayerUpdates, options: MethodOptions) -> MaskedDelta:
    """EMR-Merging (arXiv:2405.17461): one unified update, a mask and a rescaler per task.

    Elect ``gamma = sign(sum_t w_t dW_t)``; unified ``U = gamma * max {|w_t dW_t| : sign = gamma}``; mask
    ``M_t = [w_t dW_t * U > 0]``; rescaler ``sum |w_t dW_t| / sum |M_t * U|``, per layer (the authors': over the whole
    model). Not one model: the task must be named at inference. One adapter is itself.
    """
    unified = combine_row_blocks(layer.weighted, _unified)
    masks, rescalers = [], []
    for update in layer.weighted:
        dW = torch.cat(list(row_blocks(update)))
        masks.append(dW * unified > 0)
        shared = float((unified * masks[-1]).abs().sum(dtype=torch.float64))
        rescalers.append(float(dW.abs().sum(dtype=torch.float64)) / shared if shared else 0.0)
    return MaskedDelta(options.scale * unified, tuple(masks), tuple(rescalers))


def _unified(blocks: Tensor) -> Tensor:
    sign = elected_sign(blocks)
    return sign * (blocks * sign).amax(0).clamp_min(0)
