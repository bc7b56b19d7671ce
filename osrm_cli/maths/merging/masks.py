"""Rules on entries that ask which task uses which entry."""

import torch
from torch import Tensor

from osrm_cli.maths.merging.elementwise import added, elected_sign
from osrm_cli.maths.merging.inputs import LayerUpdates, Options, TaskAware


def consensus(layer: LayerUpdates, options: Options) -> Tensor:
    """Consensus merging with TALL masks (arXiv:2405.07813): the sum, where enough tasks use the entry.

    ``W = sum_t w_t dW_t``; task ``t`` uses an entry if ``|w_t dW_t| >= mask_scale * |W - w_t dW_t|``; result
    ``lambda * W`` on the entries that ``agreement`` tasks use (all tasks, if there are fewer), else 0. The paper tunes
    ``mask_scale`` per task between 0.2 and 0.6. Not linear in the weights.
    """
    total = added(update.dense() for update in layer.weighted)
    users = torch.zeros_like(total, dtype=torch.int32)
    for update in layer.weighted:
        dW = update.dense()
        users += dW.abs() >= options.mask_scale * (total - dW).abs()
    return options.scale * total * (users >= min(options.agreement, len(layer.adapters)))


def emr(layer: LayerUpdates, options: Options) -> TaskAware:
    """EMR-Merging (arXiv:2405.17461): one unified update, a mask and a rescaler per task.

    Elect ``gamma = sign(sum_t w_t dW_t)``; unified ``U = gamma * max {|w_t dW_t| : sign = gamma}``; mask
    ``M_t = [w_t dW_t * U > 0]``; rescaler ``sum |w_t dW_t| / sum |M_t * U|``, per layer (the authors': over the whole
    model). Not one model: the task must be named at inference. One adapter is itself.
    """
    sign = elected_sign(update.dense() for update in layer.weighted)
    unified = torch.zeros_like(sign)
    for update in layer.weighted:
        dW = update.dense() * sign
        unified = torch.maximum(unified, dW)
    unified *= sign
    masks, rescalers = [], []
    for update in layer.weighted:
        dW = update.dense()
        masks.append(dW * sign > 0)
        shared = float((unified * masks[-1]).abs().sum(dtype=torch.float64))
        rescalers.append(float(dW.abs().sum(dtype=torch.float64)) / shared if shared else 0.0)
    return TaskAware(options.scale * unified, tuple(masks), tuple(rescalers))
