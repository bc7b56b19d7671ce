"""Which entries of one update to keep, and by how much to enlarge them: the first half of every element rule.

All counts and thresholds are per layer. Papers that trim over the whole model at once differ in how much of each layer
survives; a layer at a time is what bounds memory and what sharding cannot change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osrm_cli.linalg.parallel import in_one_thread
from osrm_cli.linalg.row_stream import RowStream, Update
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.seeding import stream_key, uniform_rows

# Overwrites rows of one adapter, which lie at a place, with what is kept of them.
RowFilter = Callable[[slice, Tensor], object]

SAMPLE = 1 << 16
IN_CACHE = 1 << 17  # entries that are compared at a time


def keep_largest(update: Update, density: float) -> RowFilter:
    """Keep the ``int(density * n)`` largest entries by magnitude, at least one and all that equal the last."""
    (below,) = _next_smaller(_magnitude_thresholds(update, [_count_kept(update, density)]))
    return lambda _, rows: torch.hardshrink(rows, below, out=rows)


def drop_tails(update: Update, density: float, outliers: float) -> RowFilter:
    """Drop the ``outliers`` share of largest entries, then all but the ``density`` next ones (arXiv:2312.06795).

    Where both do not fit into 1, fewer outliers are dropped.
    """
    entries, count = _count_entries(update), _count_kept(update, density)
    drop = min(int(outliers * entries), entries - count)
    if not drop:
        return keep_largest(update, density)
    low, high = _next_smaller(_magnitude_thresholds(update, [count + drop, drop]))

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


def _next_smaller(bounds: Sequence[Tensor]) -> list[float]:
    """The next smaller number of each: hardshrink drops what is not above its bound."""
    return [float(torch.nextafter(bound, torch.zeros_like(bound))) for bound in bounds]


def _magnitude_thresholds(update: Update, counts: Sequence[int]) -> list[Tensor]:
    """The ``count``-th largest magnitude of the entries for each of ``counts``, exactly, in one pass.

    Of many entries, a sample brackets the answers; the pass counts what lies above each bracket and gathers what lies
    in it. Where an answer is not among that, another pass takes a wider bracket, at last all entries.
    """
    entries = _count_entries(update)
    if entries <= 4 * SAMPLE:
        magnitudes = torch.cat(list(RowStream.of(update).blocks(lambda _, rows: rows.abs_().flatten())))
        return [magnitudes.kthvalue(entries - count + 1).values for count in counts]
    sample = _sample_magnitudes(update)
    found: dict[int, Tensor] = {}
    for width in (2.5, 40.0, torch.inf):
        sought = [count for count in counts if count not in found]
        brackets = [_Bracket.of(sample, count / entries, width, entries) for count in sought]
        _count_magnitudes(update, brackets)
        for count, bracket in zip(sought, brackets, strict=True):
            if (threshold := bracket.largest(count)) is not None:
                found[count] = threshold
        if found.keys() >= set(counts):
            break
    return [found[count] for count in counts]


@dataclass
class _Bracket:
    """The magnitudes from ``low`` to ``high``, ends included, so far: ``inside`` of them, and ``above`` larger ones.

    They are gathered in room that is made before: what threads make and leave would tear holes into memory.
    """

    low: float
    high: float
    values: Tensor
    above: int = 0
    inside: int = 0
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, sample: Tensor, share: float, width: float, entries: int) -> "_Bracket":
        """Magnitudes among which the one is that ``share`` of all exceed, but for chance: ``width`` standard errors."""
        size = len(sample)
        margin = width * (size * share * (1 - share)) ** 0.5 + 1
        first, last = size * (1 - share) - margin, size * (1 - share) + margin
        low = float(sample.kthvalue(int(first)).values) if first >= 1 else 0.0
        high = float(sample.kthvalue(int(last) + 1).values) if last < size - 1 else torch.inf
        room = 0 if low == high else int(min(3 * (margin + 1) / size * entries, entries))
        return cls(low, high, sample.new_empty(room))

    def add(self, above: int, inside: int, values: Tensor) -> None:
        """Add what was found among some entries; too many values are only counted."""
        with self.lock:
            first, self.inside, self.above = self.inside, self.inside + inside, self.above + above
            if len(values) and self.inside <= len(self.values):
                self.values[first : self.inside] = values

    def largest(self, count: int) -> Tensor | None:
        """The ``count``-th largest magnitude of all, if it is known."""
        if not self.above < count <= self.above + self.inside:
            return None
        if self.low == self.high:
            return self.values.new_tensor(self.low)
        if self.inside > len(self.values):
            return None
        return self.values[: self.inside].kthvalue(self.inside - (count - self.above) + 1).values


def _count_magnitudes(update: Update, brackets: Sequence[_Bracket]) -> None:
    """Add all magnitudes of an update to brackets."""
    for _ in RowStream.of(update).blocks(lambda _, rows: _add_magnitudes(rows.flatten(), brackets)):
        pass


def _add_magnitudes(entries: Tensor, brackets: Sequence[_Bracket]) -> None:
    """Add the magnitudes of some entries ``(n,)`` to brackets; on a CPU by NumPy, in a third of the time."""
    for bracket in brackets:
        if entries.device.type == "cpu":
            _add_in_cache(entries.numpy(), bracket)
            continue
        magnitudes = entries.abs()
        larger = magnitudes > bracket.high
        within = (magnitudes >= bracket.low) ^ larger
        near = magnitudes[within] if len(bracket.values) else magnitudes[:0]
        bracket.add(int(larger.sum()), int(within.sum()), near)


def _add_in_cache(entries: NDArray[Any], bracket: _Bracket) -> None:
    room = min(IN_CACHE, len(entries))
    magnitudes, masks = np.empty(room, dtype=entries.dtype), np.empty((2, room), dtype=bool)
    for first in range(0, len(entries), IN_CACHE):
        some = entries[first : first + IN_CACHE]
        sizes, (larger, within) = magnitudes[: len(some)], masks[:, : len(some)]
        np.abs(some, out=sizes)
        np.greater(sizes, bracket.high, out=larger)
        np.greater_equal(sizes, bracket.low, out=within)
        np.logical_xor(within, larger, out=within)
        near = torch.from_numpy(sizes[within] if len(bracket.values) else sizes[:0])
        bracket.add(int(np.count_nonzero(larger)), int(np.count_nonzero(within)), near)


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
