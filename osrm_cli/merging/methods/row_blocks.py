"""Dense work a few rows at a time, so that memory is one ``(d_out, d_in)`` whatever the number of adapters."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank

BLOCK_ENTRIES = 32  # the rows of a few adapters, 4096 wide, then stay in a core's cache

# Turns one adapter's rows into what is kept of them; called on successive blocks of rows, from the first to the last.
RowFilter = Callable[[Tensor], Tensor]

# Turns the adapters' rows, ``(T, rows, d_in)``, into the merged ones, ``(rows, d_in)``.
RowCombination = Callable[[Tensor], Tensor]


def row_blocks(update: LowRank) -> Iterator[Tensor]:
    """The dense update in blocks of ``ROWS`` rows, in float32 or better.

    Blocks, not one product, wherever entries are compared with each other: how a product is rounded may depend on the
    number of its rows.
    """
    wide = update.promoted()
    return (wide.B[start : start + BLOCK_ENTRIES] @ wide.A for start in range(0, update.shape[0], BLOCK_ENTRIES))


def combine_row_blocks(
    updates: Sequence[LowRank], combine: RowCombination, keep: Sequence[RowFilter] | None = None
) -> Tensor:
    """``combine`` applied to all rows of the updates, after each adapter's ``keep``: ``(d_out, d_in)``."""
    chosen = keep or [lambda rows: rows] * len(updates)
    merged = []
    for blocks in zip(*map(row_blocks, updates), strict=True):
        merged.append(combine(torch.stack([pick(rows) for pick, rows in zip(chosen, blocks, strict=True)])))
    return torch.cat(merged)


def sum_rows(blocks: Tensor) -> Tensor:
    """``sum_t x_t``, ``(rows, d_in)``."""
    return blocks.sum(0)


def elected_sign(blocks: Tensor) -> Tensor:
    """``sign(sum_t x_t)``, ``(rows, d_in)``; 0 where the sum is nothing but rounding, so that opposite updates cancel.

    The authors of TIES give such entries the sign of the majority of all entries. They are zero in every update, or the
    updates cancel; here they stay zero.
    """
    total = blocks.sum(0)
    rounding = 4 * torch.finfo(blocks.dtype).eps * blocks.abs().sum(0)
    return torch.where(total.abs() > rounding, total.sign(), 0.0)
