"""Which entries of one update to keep, and by how much to enlarge them: the first half of every element rule.

All counts and thresholds are per layer. Papers that trim over the whole model at once differ in how much of each layer
survives; a layer at a time is what bounds memory and what sharding cannot change.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from osrm_cli.linalg.parallel import in_one_thread
from osrm_cli.linalg.row_stream import RowStream, Update
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.seeding import stream_key, uniform_rows

# Overwrites rows of one adapter, which lie at a place, with what is kept of them.
RowFilter = Callable[[slice, Tensor], object]

SAMPLE = 1 << 16


def keep_largest(update: Update, density: float) -> RowFilter:
    """Keep the ``int(density * n)`` largest entries by magnitude, at least one and all that equal the last."""
    below = _next_smaller(_magnitude_threshold(update, _count_kept(update, density)))
    return lambda _, rows: torch.hardshrink(rows, below, out=rows)


def drop_tails(update: Update, density: float, outliers: float) -> RowFilter:
    """Drop the ``outliers`` share of largest entries, then all but the ``density`` next ones (arXiv:2312.06795).

    Where both do not fit into 1, fewer outliers are dropped.
    """
    entries, count = _count_entries(update), _count_kept(update, density)
    drop = min(int(outliers * entries), entries - count)
    if not drop:
        return keep_largest(update, density)
    low, high = (_next_smaller(_magnitude_threshold(update, kept)) for kept in (count + drop, drop))

    def keep(_: slice, rows: Tensor) -> None:
        largest = torch.hardshrink(rows, high)
        torch.hardshrink(rows, low, out=rows).sub_(largest)

    return keep


def drop_randomly(options: MethodOptions, *names: str) -> RowFilter:
    """Keep entries with probability ``density`` and divide by it: the same in expectation (arXiv:2311.03099)."""
    key = stream_key(options.seed, *names)

    def keep(place: slice, rows: Tensor) -> None:
        kept = uniform_rows(key, place, rows.shape[1], rows.device).lt_(options.density)
        rows.mul_(kept).div_(options.density)

    return keep


def drop_by_magnitude(options: MethodOptions, *names: str) -> RowFilter:
    """Keep entries at random, larger ones more often, and divide by their own probability (MAGPRUNE, arXiv:2406.11617).

    In each row the probability rises linearly with the rank of the magnitude, by ``window`` in all, around ``density``.
    The window narrows where it would reach above 1 or below half the density.
    """
    key = stream_key(options.seed, *names)
    width = min(options.window, options.density, 2 * (1 - options.density))

    def keep(place: slice, rows: Tensor) -> None:
        ladder = torch.linspace(-width / 2, width / 2, rows.shape[1], dtype=rows.dtype, device=rows.device)
        probability = torch.empty_like(rows)
        probability.scatter_(1, _order_by_magnitude(rows.abs()), (options.density + ladder).expand_as(rows))
        kept = uniform_rows(key, place, rows.shape[1], rows.device).lt_(probability)
        rows.mul_(kept).div_(probability)

    return keep


def _order_by_magnitude(magnitude: Tensor) -> Tensor:
    """Columns of each row from the smallest entry to the largest, equal ones from the left, ``(rows, d_in)``.

    On a CPU by NumPy's radix sort of 16 bits at a time, nine times as fast as sorting: numbers that are not negative
    have the order of their bits.
    """
    if magnitude.device.type != "cpu":
        return magnitude.argsort(dim=1, stable=True)
    words = magnitude.numpy().view(np.uint16).reshape(*magnitude.shape, -1)
    return torch.from_numpy(np.lexsort(tuple(np.moveaxis(words, -1, 0)), axis=-1))


def _count_entries(update: Update) -> int:
    return update.shape[0] * update.shape[1]


def _count_kept(update: Update, density: float) -> int:
    return max(int(density * _count_entries(update)), 1)


def _next_smaller(bound: Tensor) -> float:
    """The next smaller number: hardshrink drops what is not above its bound."""
    return float(torch.nextafter(bound, torch.zeros_like(bound)))


def _magnitude_threshold(update: Update, count: int) -> Tensor:
    """The ``count``-th largest magnitude of the entries, exactly, in one pass.

    Of many entries, a sample brackets the answer; the pass counts what lies above the bracket and gathers what lies in
    it. Where the answer is not among that, another pass takes a wider bracket, at last all entries.
    """
    entries = _count_entries(update)
    if entries <= 4 * SAMPLE:
        magnitudes = torch.cat(list(RowStream.of(update).blocks(lambda _, rows: rows.abs_().flatten())))
        return magnitudes.kthvalue(entries - count + 1).values
    sample = _sample_magnitudes(update)
    centre = len(sample) - count * len(sample) // entries
    for margin in (len(sample) // 256, len(sample) // 16, len(sample)):
        low = float(sample.kthvalue(centre - margin).values) if centre > margin > 0 else 0.0
        high = float(sample.kthvalue(centre + margin).values) if centre + margin < len(sample) else torch.inf
        above, inside, between = _count_magnitudes(update, low, high)
        if low == high and above < count <= above + inside:
            return torch.tensor(low, dtype=between.dtype)
        if above < count <= above + len(between):
            break
    return between.kthvalue(len(between) - (count - above) + 1).values


def _count_magnitudes(update: Update, low: float, high: float) -> tuple[int, int, Tensor]:
    """How many magnitudes are above ``high``, and from ``low`` to ``high``; and the latter, unless all are the same."""

    def split(_: slice, rows: Tensor) -> tuple[float, float, Tensor]:
        # Comparing into numbers, and gathering columns first, takes a third of the time of masks of all entries.
        size = rows.abs_()
        above = torch.gt(size, high, out=torch.empty_like(size))
        inside = torch.ge(size, low, out=torch.empty_like(size)).sub_(above).sum(0)
        near = size.index_select(1, inside.nonzero().flatten()) if low < high else size[:, :0]
        return float(above.sum()), float(inside.sum()), near[(near >= low) & (near <= high)]

    above, inside, between = zip(*RowStream.of(update).blocks(split), strict=True)
    return int(sum(above)), int(sum(inside)), torch.cat(between)


@in_one_thread()
def _sample_magnitudes(update: Update) -> Tensor:
    """Magnitudes of about ``SAMPLE`` entries, evenly spread; of a dense update, of rows that are."""
    if isinstance(update, RowStream):
        step = max(_count_entries(update) // SAMPLE, 1)
        return torch.cat([update.form(slice(row, row + 1))[0] for row in range(0, update.shape[0], step)]).abs()
    wide = update.promoted()
    at = torch.arange(0, _count_entries(update), _count_entries(update) // SAMPLE | 1, device=wide.B.device)
    rows, columns = at // update.shape[1], at % update.shape[1]
    return (wide.B.index_select(0, rows) * wide.A.T.contiguous().index_select(0, columns)).sum(1).abs()
