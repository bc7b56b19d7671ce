"""Rules on the entries of the updates: sparsify each, then add or elect signs; keep what tasks share; weigh each entry.

Results are dense. The same functions serve the core space and the shared basis of KnOTS, where "entry" means a
coordinate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank, stack_factors
from osrm_cli.linalg.row_stream import RowStream, Update
from osrm_cli.merging.methods.layer_updates import LayerUpdates, MaskedDelta
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.sparsify import RowFilter, drop_by_magnitude, drop_randomly, drop_tails, keep_largest


def ties(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """TIES (arXiv:2306.01708): trim each ``w_t dW_t`` to its ``density`` largest entries, elect signs, merge.

    ``x_t = trim(w_t dW_t)``, ``gamma = sign(sum_t x_t)``, result ``lambda * mean {x_t : sign(x_t) = gamma}``, or their
    sum. Weights act before the election, as in mergekit; in PEFT after it. The mean divides by the number of entries,
    as in PEFT and the authors' code; in mergekit by their weights. One adapter is itself at density 1; below, it is
    its trimmed self. Not linear in the weights.
    """
    keep = [keep_largest(update, options.density) for update in layer.updates]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: merge_agreeing_entries(blocks, options))


def magnitude(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """``lambda * sum_t trim(w_t dW_t)``: each update reduced to its ``density`` largest entries, then added.

    What PEFT calls ``magnitude_prune``. One adapter is itself at density 1.
    """
    keep = [keep_largest(update, options.density) for update in layer.updates]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: blocks.sum(0).mul_(options.scale))


def breadcrumbs(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Model Breadcrumbs (arXiv:2312.06795): ``lambda * sum_t m_t * w_t dW_t``, ``m_t`` without both tails.

    ``outliers`` of the largest entries and all but the ``density`` next ones are dropped. One adapter is itself at
    density 1, where no outlier is dropped.
    """
    keep = [drop_tails(update, options.density, options.outliers) for update in layer.updates]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: blocks.sum(0).mul_(options.scale))


def dare(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """DARE (arXiv:2311.03099): ``lambda * sum_t m_t * w_t dW_t / density``, ``m_t`` Bernoulli(``density``).

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1.
    """
    keep = [drop_randomly(options, layer.name, adapter) for adapter in layer.adapters]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: blocks.sum(0).mul_(options.scale))


def dare_ties(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """DARE's random drop in the place of TIES's trimming; then TIES's election and mean (arXiv:2311.03099).

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1. Not
    linear in the weights.
    """
    keep = [drop_randomly(options, layer.name, adapter) for adapter in layer.adapters]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: merge_agreeing_entries(blocks, options))


def della(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """DELLA (arXiv:2406.11617): drop small entries more often than large ones, rescale, elect signs, merge as in TIES.

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1. Not
    linear in the weights.
    """
    keep = [drop_by_magnitude(options, layer.name, adapter) for adapter in layer.adapters]
    return stack_update_rows(layer.updates, keep).then(lambda _, blocks: merge_agreeing_entries(blocks, options))


def stack_update_rows(updates: Sequence[Update], keep: Sequence[RowFilter] | None = None) -> RowStream:
    """The rows of several updates side by side, ``(T, rows, d_in)``, each after its ``keep``."""
    first = RowStream.of(updates[0])

    def form(place: slice) -> Tensor:
        size = (len(updates), place.stop - place.start, first.shape[1])
        blocks = torch.empty(size, dtype=first.dtype, device=first.device)
        for index, update in enumerate(updates):
            if isinstance(update, LowRank):
                torch.mm(update.B[place], update.A, out=blocks[index])
            else:
                blocks[index] = update.form(place)
            if keep:
                keep[index](place, blocks[index])
        return blocks

    factors = [update for update in updates if isinstance(update, LowRank)]
    near = stack_factors(factors) if len(factors) == len(updates) else None
    return RowStream(first.shape, first.dtype, first.device, form, near=near)


def merge_agreeing_entries(blocks: Tensor, options: MethodOptions) -> Tensor:
    """The mean, or the sum, of the entries that have the elected sign, times lambda; overwrites ``blocks``."""
    sign, agreeing, total = elect_signs(blocks)
    total.mul_(sign).mul_(options.scale)
    return total if options.aggregate == "sum" else total.div_(agreeing.sign_().sum(0).clamp_min_(1))


def elect_signs(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``gamma = sign(sum_t x_t)``, each ``max(gamma x_t, 0)``, and their sum; overwrites ``blocks``.

    The sign is 0 where the sum is nothing but rounding, so that opposite updates cancel. The authors of TIES give such
    entries the sign of the majority of all entries. They are zero in every update, or the updates cancel; here they
    stay zero.
    """
    total = blocks.sum(0)
    sign = total.sign()
    agreeing = blocks.mul_(sign).clamp_min_(0)
    share = agreeing.sum(0)
    sizes = 2 * share - total.abs_()  # sum_t |x_t|
    sign.mul_(total.sub_(sizes, alpha=4 * torch.finfo(blocks.dtype).eps).clamp_min_(0).sign_())
    return sign, agreeing, share


def consensus(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Consensus merging with TALL masks (arXiv:2405.07813): the sum, where enough tasks use the entry.

    ``W = sum_t w_t dW_t``; task ``t`` uses an entry if ``|w_t dW_t| >= mask_scale * |W - w_t dW_t|``; result
    ``lambda * W`` on the entries that ``agreement`` tasks use (all tasks, if there are fewer), else 0. The paper tunes
    ``mask_scale`` per task between 0.2 and 0.6. Not linear in the weights.
    """
    needed = min(options.agreement, len(layer.adapters))

    def combine(_: slice, blocks: Tensor) -> Tensor:
        total = blocks.sum(0)
        others = (total - blocks).abs_().mul_(options.mask_scale)
        users = torch.ge(blocks.abs_(), others, out=others).sum(0)
        return total.mul_(users.ge_(needed)).mul_(options.scale)

    return stack_update_rows(layer.updates).then(combine)


def fisher(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Fisher merging of the updates (arXiv:2111.09832): ``lambda * sum_t F_t * w_t dW_t / sum_t F_t``, per entry.

    ``F_t`` is the diagonal Fisher information of the merged weight's entries on task ``t``. Entries without any
    information take the plain mean. One adapter is itself; linear in the weights.

    Raises:
        OsrmError: If there is no Fisher information.
    """
    if layer.fisher is None:
        raise OsrmError(f"fisher needs the Fisher information of {layer.name}, none was given")
    fisher = layer.fisher

    def combine(place: slice, blocks: Tensor) -> Tensor:
        shares = torch.stack([F[place].to(blocks) for F in fisher])
        total = shares.sum(0)
        mean = blocks.mean(0)
        merged = blocks.mul_(shares.div_(total)).sum(0)
        return torch.where(total > 0, merged, mean).mul_(options.scale)

    return stack_update_rows(layer.updates).then(combine)


def emr(layer: LayerUpdates, options: MethodOptions) -> MaskedDelta:
    """EMR-Merging (arXiv:2405.17461): one unified update, a mask and a rescaler per task.

    Elect ``gamma = sign(sum_t w_t dW_t)``; unified ``U = gamma * max {|w_t dW_t| : sign = gamma}``; mask
    ``M_t = [w_t dW_t * U > 0]``; rescaler ``sum |w_t dW_t| / sum |M_t * U|``, per layer (the authors': over the whole
    model). Not one model: the task must be named at inference. One adapter is itself.
    """
    updates = stack_update_rows(layer.updates)
    unified = torch.empty(updates.shape, dtype=updates.dtype, device=updates.device)
    masks = torch.empty(len(layer.adapters), *updates.shape, dtype=torch.bool, device=updates.device)

    def unify(place: slice, blocks: Tensor) -> Tensor:
        sizes = blocks.abs().sum(2)
        sign, agreeing, _ = elect_signs(blocks)
        largest = agreeing.amax(0).mul_(sign.abs())
        torch.mul(largest, sign, out=unified[place])
        used = agreeing.sign_().mul_(sign.abs())
        masks[:, place] = used
        shared = used.mul_(largest).sum(2)
        return torch.stack([sizes, shared]).to(torch.float64).sum(2)

    sizes, shared = torch.stack(list(updates.blocks(unify))).sum(0)
    rescalers = torch.where(shared > 0, sizes / shared, 0.0)
    return MaskedDelta(unified.mul_(options.scale), tuple(masks), tuple(rescalers.cpu().tolist()))
