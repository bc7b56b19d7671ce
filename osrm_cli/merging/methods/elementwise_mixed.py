"""Further rules on the entries of the updates, put together from the same parts, or with weights of their own."""

import torch
from torch import Tensor

from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods.elementwise import elect, elected, formed
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.sparsify import drop_by_magnitude, drop_tails


def breadcrumbs_ties(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Breadcrumbs' masks (arXiv:2312.06795) in the place of TIES's trimming; then TIES's election and mean.

    What mergekit calls ``breadcrumbs_ties``. One adapter is itself at density 1. Not linear in the weights.
    """
    keep = [drop_tails(update, options.density, options.outliers) for update in layer.updates]
    return formed(layer.updates, keep).then(lambda _, blocks: elected(blocks, options))


def della_linear(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """DELLA's random drop by magnitude (arXiv:2406.11617), then the sum, without an election.

    What mergekit calls ``della_linear``. Masks are independent, so opposite adapters cancel in expectation only; one
    adapter is itself at density 1.
    """
    keep = [drop_by_magnitude(options, layer.name, adapter) for adapter in layer.adapters]
    return formed(layer.updates, keep).then(lambda _, blocks: blocks.sum(0).mul_(options.scale))


def sce(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """SCE of FuseChat (arXiv:2408.07990): select entries, calculate coefficients, erase the minority's signs.

    Selected are the ``density`` share of the entries whose variance among the ``x_t = w_t dW_t`` is largest, of those
    that vary at all; all, where none varies. Coefficients ``c_t`` are the sums of squares of what is selected. Result
    ``lambda * sum_t c_t x_t [sign x_t = gamma] / sum_t c_t [sign x_t = gamma]``, ``gamma = sign(sum_t x_t)``. By
    default mergekit selects everything. One adapter is itself. Not linear in the weights.
    """
    updates = formed(layer.updates)
    variance = updates.then(lambda _, blocks: blocks.var(0, correction=0)).dense()
    # What rounding leaves where the updates are equal is no variance.
    varied = variance[variance > 1e-12 * variance.max()]
    count = int(options.density * len(varied))
    least = float(varied.topk(count).values[-1]) if count else (0.0 if not len(varied) else torch.inf)
    chosen = variance >= least
    squares = updates.blocks(lambda place, blocks: blocks.mul_(chosen[place]).to(torch.float64).square().sum((1, 2)))
    energies = torch.stack(list(squares)).sum(0)
    shares = (energies / energies.max().clamp_min(torch.finfo(torch.float64).tiny)).to(variance.dtype)[:, None, None]

    def combine(place: slice, blocks: Tensor) -> Tensor:
        sign, agreeing, _ = elect(blocks)
        weights = shares * (agreeing > 0)
        total = (weights * agreeing).sum(0) / weights.sum(0).clamp_min(torch.finfo(blocks.dtype).tiny)
        return total.mul_(sign).mul_(chosen[place]).mul_(options.scale)

    return updates.then(combine)
