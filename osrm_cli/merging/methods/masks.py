"""Rules on entries that ask which task uses which entry."""

import torch
from torch import Tensor

from osrm_cli.merging.methods.layer_updates import LayerUpdates, Options, TaskAware
from osrm_cli.merging.methods.row_blocks import by_rows, elected_sign, row_blocks


def consensus(layer: LayerUpdates, options: Options) -> Tensor:
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

    return options.scale * by_rows(layer.weighted, combine)


def emr(layer: LayerUpdates, options: Options) -> TaskAware:
    """EMR-Merging (arXiv:2405.17461): one unified update, a mask and a rescaler per task.

    Elect ``gamma = sign(sum_t w_t dW_t)``; unified ``U = gamma * max {|w_t dW_t| : sign = gamma}``; mask
    ``M_t = [w_t dW_t * U > 0]``; rescaler ``sum |w_t dW_t| / sum |M_t * U|``, per layer (the authors': over the whole
    model). Not one model: the task must be named at inference. One adapter is itself.
    """
    unified = by_rows(layer.weighted, _unified)
    masks, rescalers = [], []
    for update in layer.weighted:
        dW = torch.cat(list(row_blocks(update)))
        masks.append(dW * unified > 0)
        shared = float((unified * masks[-1]).abs().sum(dtype=torch.float64))
        rescalers.append(float(dW.abs().sum(dtype=torch.float64)) / shared if shared else 0.0)
    return TaskAware(options.scale * unified, tuple(masks), tuple(rescalers))


def _unified(blocks: Tensor) -> Tensor:
    sign = elected_sign(blocks)
    return sign * (blocks * sign).amax(0).clamp_min(0)
