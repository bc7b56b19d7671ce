"""Further rules on the entries of the updates, put together from the same parts, or with weights of their own."""

import torch
from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods.elementwise import elect_signs, merge_agreeing_entries, stack_update_rows
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.sparsify import drop_by_magnitude, drop_tails, keep_largest

BONUS_SHARE = 0.2  # RAM+: a task's own entries grow no further than at this ratio of shared to own ones


def breadcrumbs_ties(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Breadcrumbs' masks (arXiv:2312.06795) in the place of TIES's trimming; then TIES's election and mean.

    What mergekit calls ``breadcrumbs_ties``. One adapter is itself at density 1. Not linear in the weights.
    """
    keep = [drop_tails(update, options.density, options.outliers) for update in layer.updates]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: merge_agreeing_entries(blocks, options))


def della_linear(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """DELLA's random drop by magnitude (arXiv:2406.11617), then the sum, without an election.

    What mergekit calls ``della_linear``. Masks are independent, so opposite adapters cancel in expectation only; one
    adapter is itself at density 1.
    """
    keep = [drop_by_magnitude(options, layer.name, adapter) for adapter in layer.adapters]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: blocks.sum(0).mul_(options.scale))


def sce(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """SCE of FuseChat (arXiv:2408.07990): select entries, calculate coefficients, erase the minority's signs.

    Selected are the ``density`` share of the entries whose variance among the ``x_t = w_t dW_t`` is largest, of those
    that vary at all; all, where none varies. Coefficients ``c_t`` are the sums of squares of what is selected. Result
    ``lambda * sum_t c_t x_t [sign x_t = gamma] / sum_t c_t [sign x_t = gamma]``, ``gamma = sign(sum_t x_t)``. By
    default mergekit selects everything. One adapter is itself. Not linear in the weights.
    """
    updates = stack_update_rows(layer.updates)
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
        sign, agreeing, _ = elect_signs(blocks)
        weights = shares * (agreeing > 0)
        total = (weights * agreeing).sum(0) / weights.sum(0).clamp_min(torch.finfo(blocks.dtype).tiny)
        return total.mul_(sign).mul_(chosen[place]).mul_(options.scale)

    return updates.then(combine)


def ram(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """RAM (arXiv:2601.13572): the mean over the tasks that use an entry; what one task alone changed stays whole.

    ``m_t = [|w_t dW_t| > epsilon]``; result ``lambda * sum_t m_t w_t dW_t / sum_t m_t``. RAM+: entries that one task
    alone uses times ``1 + bonus * min(shared_t / own_t, 0.2)``, by the numbers of entries that it uses with others and
    alone. Equal to mergekit's ``ram``, and to its ``ramplus_tl`` with ``bonus`` for its ``r``. It is meant for sparse
    updates, as reinforcement learning leaves them: those of LoRA have few entries below ``epsilon``, so that RAM is
    nearly their average. One adapter is itself but for the entries below. Not linear in the weights.
    """
    updates = stack_update_rows(layer.updates)
    growth = torch.ones(len(layer.adapters), dtype=updates.dtype, device=updates.device)
    if options.bonus:

        def count(_: slice, blocks: Tensor) -> Tensor:
            used = blocks.abs_() > options.epsilon
            alone = used & (used.sum(0) == 1)
            return torch.stack([used, alone]).sum((2, 3), dtype=torch.float64)

        used, alone = torch.stack(list(updates.blocks(count))).sum(0)
        ratio = (used - alone) / alone.clamp_min(options.epsilon or 1.0)
        growth += (options.bonus * ratio.clamp_max(BONUS_SHARE)).to(growth)

    def combine(_: slice, blocks: Tensor) -> Tensor:
        used = blocks.abs() > options.epsilon
        users = used.sum(0)
        grown = torch.where(users == 1, growth[:, None, None], 1.0)
        return blocks.mul_(used).mul_(grown).sum(0).div_(users.clamp_min(1)).mul_(options.scale)

    return updates.then(combine)


def tatr(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Task arithmetic in the trust region (arXiv:2501.15065), without data: ``lambda * sum_t m * w_t dW_t``.

    ``m`` drops the ``outliers`` share of the entries where tasks conflict most, by
    ``sum_{s != t} |w_s dW_s| |w_t dW_t|``: the updates stand for the gradients of the tasks' losses, as in the paper's
    variant without data. Entries that one task alone changes are never dropped. One adapter is itself. Not linear in
    the weights.
    """

    def conflict(blocks: Tensor) -> Tensor:
        sizes = blocks.abs()
        return (sizes * (sizes.sum(0) - sizes)).sum(0)

    updates = stack_update_rows(layer.updates)
    if not options.outliers:
        return updates.then(lambda _, blocks: blocks.sum(0).mul_(options.scale))
    keep = keep_largest(updates.then(lambda _, blocks: conflict(blocks)), options.outliers)

    def combine(place: slice, blocks: Tensor) -> Tensor:
        dropped = conflict(blocks)
        keep(place, dropped)
        return blocks.sum(0).mul_(dropped == 0).mul_(options.scale)

    return updates.then(combine)


def magmax(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """MagMax (arXiv:2407.06322): ``lambda`` times, of each entry, the ``w_t dW_t`` of largest magnitude.

    Where the largest and the smallest are opposite to rounding, they cancel; the authors take the later task's. One
    adapter is itself. Not linear in the weights.
    """

    def combine(_: slice, blocks: Tensor) -> Tensor:
        high, low = blocks.amax(0).clamp_min_(0), blocks.amin(0).clamp_max_(0)
        balance = (high + low) / (high - low).clamp_min_(torch.finfo(blocks.dtype).tiny)
        bound = 4 * torch.finfo(blocks.dtype).eps
        return (high * (balance > bound)).add_(low * (balance < -bound)).mul_(options.scale)

    return stack_update_rows(layer.updates).then(combine)


def nearswap(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Nearswap of two adapters, as in mergekit (by alchemonaut): one moves towards the other, each entry a little.

    ``lambda * (w_a dW_a + clamp(w_b dW_b - w_a dW_a, -reach, reach))``: entries that are near become the other's, far
    ones move by ``reach``. ``a`` is ``primary``, else the first by name. mergekit's ``nearswap`` says the same of whole
    weights, with ``t`` for ``reach``, and as the base model cancels, it gives the same update. One adapter is itself.
    Not linear in the weights.

    Raises:
        OsrmError: If there are more than two adapters, or none is called ``primary``.
    """
    names = list(layer.adapters)
    if len(names) > 2:
        raise OsrmError(f"nearswap takes two adapters, found {len(names)}", "merge two, or use another method")
    if options.primary is not None and options.primary not in names:
        raise OsrmError(f"no adapter is called {options.primary!r}", f"--primary takes one of {', '.join(names)}")
    first = names.index(options.primary) if options.primary else 0

    def combine(_: slice, blocks: Tensor) -> Tensor:
        moved, other = blocks[first], blocks[-1 - first]
        step = (other - moved).clamp_(-options.reach, options.reach)
        return step.add_(moved).mul_(options.scale)

    return stack_update_rows(layer.updates).then(combine)
