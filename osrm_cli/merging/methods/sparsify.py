"""Which entries of one update to keep, and by how much to enlarge them: the first half of every element rule.

All counts and thresholds are per layer. Papers that trim over the whole model at once differ in how much of each layer
survives; a layer at a time is what bounds memory and what sharding cannot change.
"""

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.row_blocks import RowFilter, row_blocks
from osrm_cli.seeding import generator

SAMPLE = 1 << 14


def keep_largest(update: LowRank, density: float) -> RowFilter:
    """Keep the ``int(density * n)`` largest entries by magnitude, at least one and all that equal the last."""
    low = _magnitude_threshold(update, _count(update, density))
    below = float(torch.nextafter(low, torch.zeros_like(low)))  # hardshrink drops what is not above its bound
    return lambda rows: torch.nn.functional.hardshrink(rows, below)


def drop_tails(update: LowRank, density: float, outliers: float) -> RowFilter:
    """Drop the ``outliers`` share of largest entries, then all but the ``density`` next ones (arXiv:2312.06795).

    Where both do not fit into 1, fewer outliers are dropped.
    """
    entries, count = _entries(update), _count(update, density)
    drop = min(int(outliers * entries), entries - count)
    low = _magnitude_threshold(update, count + drop)
    high = _magnitude_threshold(update, drop) if drop else torch.tensor(torch.inf)
    return lambda rows: rows * ((rows.abs() >= low) & (rows.abs() < high))


def drop_randomly(options: MethodOptions, *names: str) -> RowFilter:
    """Keep entries with probability ``density`` and divide by it: the same in expectation (arXiv:2311.03099)."""
    draws = generator(options.seed, *names)
    return lambda rows: _drawn(rows, torch.full_like(rows, options.density), draws)


def drop_by_magnitude(options: MethodOptions, *names: str) -> RowFilter:
    """Keep entries at random, larger ones more often, and divide by their own probability (MAGPRUNE, arXiv:2406.11617).

    In each row the probability rises linearly with the rank of the magnitude, by ``window`` in all, around ``density``.
    The window narrows where it would reach above 1 or below half the density.
    """
    draws = generator(options.seed, *names)
    width = min(options.window, options.density, 2 * (1 - options.density))

    def keep(rows: Tensor) -> Tensor:
        ladder = torch.linspace(-width / 2, width / 2, rows.shape[1], dtype=rows.dtype, device=rows.device)
        order = rows.abs().argsort(dim=1, stable=True)
        probability = torch.empty_like(rows).scatter_(1, order, (options.density + ladder).expand_as(rows))
        return _drawn(rows, probability, draws)

    return keep


def _drawn(rows: Tensor, probability: Tensor, draws: torch.Generator) -> Tensor:
    # Drawn in float32 on the CPU whatever the precision and device of the update: the same seed, the same mask.
    kept = torch.rand(rows.shape, generator=draws).to(rows.device) < probability
    return torch.where(kept, rows / probability, 0.0)


def _entries(update: LowRank) -> int:
    return update.shape[0] * update.shape[1]


def _count(update: LowRank, density: float) -> int:
    return max(int(density * _entries(update)), 1)


def _magnitude_threshold(update: LowRank, count: int) -> Tensor:
    """The ``count``-th largest magnitude of the entries, exactly.

    Selection over all entries takes a second for 4096 x 4096. A sorted sample of them brackets the answer instead: one
    pass gathers the entries in the bracket, and counting those below it proves the answer. Where it cannot, all serve.
    """
    rank = _entries(update) - count  # from the smallest, which is 0
    if _entries(update) > 4 * SAMPLE:
        sample = _sampled(update)
        centre, margin = rank * len(sample) // _entries(update), len(sample) // 64
        low, high = sample[max(centre - margin, 0)], sample[min(centre + margin, len(sample) - 1)]
        reaching, between = 0, []
        for rows in row_blocks(update):
            magnitude = rows.abs_()
            inside = magnitude >= low
            reaching += int(torch.count_nonzero(inside))
            inside &= magnitude <= high
            between.append(magnitude[inside])
        offset = rank - (_entries(update) - reaching)
        bracket = torch.cat(between)
        if 0 <= offset < len(bracket):
            return bracket.kthvalue(offset + 1).values
    return torch.cat([rows.abs_().flatten() for rows in row_blocks(update)]).kthvalue(rank + 1).values


def _sampled(update: LowRank) -> Tensor:
    """Magnitudes of about ``SAMPLE`` entries, evenly spread, in rising order."""
    wide = update.promoted()
    at = torch.arange(0, _entries(update), _entries(update) // SAMPLE | 1, device=wide.B.device)
    rows, columns = at // update.shape[1], at % update.shape[1]
    return (wide.B[rows] * wide.A.T[columns]).sum(1).abs().sort().values
