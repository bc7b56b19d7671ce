"""Further rules on the entries of the updates, put together from the same parts, or with weights of their own."""

import torch
from torch import Tensor

from osrm_cli.merging.methods.elementwise import elected
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.row_blocks import combine_row_blocks, elected_sign, sum_rows
from osrm_cli.merging.methods.sparsify import drop_by_magnitude, drop_tails


def breadcrumbs_ties(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """Breadcrumbs' masks (arXiv:2312.06795) in the place of TIES's trimming; then TIES's election and mean.

    What mergekit calls ``breadcrumbs_ties``. One adapter is itself at density 1. Not linear in the weights.
    """
    keep = [drop_tails(update, options.density, options.outliers) for update in layer.weighted]
    return options.scale * combine_row_blocks(layer.weighted, lambda blocks: elected(blocks, options.aggregate), keep)


def della_linear(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """DELLA's random drop by magnitude (arXiv:2406.11617), then the sum, without an election.

    What mergekit calls ``della_linear``. Masks are independent, so opposite adapters cancel in expectation only; one
    adapter is itself at density 1.
    """
    keep = [drop_by_magnitude(options, layer.name, adapter) for adapter in layer.adapters]
    return options.scale * combine_row_blocks(layer.weighted, sum_rows, keep)


def sce(layer: LayerUpdates, options: MethodOptions) -> Tensor:
    """SCE of FuseChat (arXiv:2408.07990): select entries, calculate coefficients, erase the minority's signs.

    Selected are the ``density`` share of the entries whose variance among the ``x_t = w_t dW_t`` is largest, of those
    that vary at all; all, where none varies. Coefficients ``c_t`` are the sums of squares of what is selected. Result
    ``lambda * sum_t c_t x_t [sign x_t = gamma] / sum_t c_t [sign x_t = gamma]``, ``gamma = sign(sum_t x_t)``. By
    default mergekit selects everything. One adapter is itself. Not linear in the weights.
    """
    updates = layer.weighted
    variance = combine_row_blocks(updates, lambda blocks: blocks.var(0, correction=0))
    # What rounding leaves where the updates are equal is no variance.
    varied = variance[variance > 1e-12 * variance.max()]
    count = int(options.density * len(varied))
    least = float(varied.topk(count).values[-1]) if count else (0.0 if not len(varied) else torch.inf)
    chosen = iter(torch.split(variance >= least, 32))  # the blocks come in the same order
    energies = torch.zeros(len(updates), dtype=torch.float64, device=variance.device)

    def measure(blocks: Tensor) -> Tensor:
        energies.add_((blocks * next(chosen)).to(torch.float64).square().sum((1, 2)))
        return blocks[0]

    combine_row_blocks(updates, measure)
    shares = (energies / energies.max().clamp_min(torch.finfo(torch.float64).tiny)).to(variance.dtype)[:, None, None]

    def combine(blocks: Tensor) -> Tensor:
        sign = elected_sign(blocks)
        weights = shares * (blocks * sign > 0)
        return (weights * blocks).sum(0) / weights.sum(0).clamp_min(torch.finfo(blocks.dtype).tiny)

    return options.scale * combine_row_blocks(updates, combine) * (variance >= least)
