"""A dense matrix as a stream of blocks of rows, formed in a core's cache where they are wanted and never held."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank, stack
from osrm_cli.linalg.parallel import in_one_thread, map_in_order

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RowStream:
    """A ``(d_out, d_in)`` matrix by its rows.

    The rows are always formed in the same blocks: how a product is rounded may depend on the number of its rows, and a
    threshold that was counted has to meet the same bits again.

    Attributes:
        shape: ``(d_out, d_in)``.
        dtype: Of its entries, float32 or better.
        device: Where they are formed.
        form: Makes the rows of one block, ``(rows, d_in)``, or those of several matrices, ``(T, rows, d_in)``. Called
            by several threads at once.
        near: What the matrix resembles; spares a decomposition its first pass.
        whole: The matrix itself, where it is held anyway.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    form: Callable[[slice], Tensor]
    near: LowRank | None = None
    whole: Tensor | None = None

    @classmethod
    def of(cls, matrix: "LowRank | RowStream | Tensor") -> "RowStream":
        """The rows of a product, or of a matrix that is held anyway; a stream is itself."""
        if isinstance(matrix, RowStream):
            return matrix
        if isinstance(matrix, Tensor):
            wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
            shape = (matrix.shape[0], matrix.shape[1])
            return cls(shape, wide.dtype, wide.device, lambda place: wide[place], whole=wide)
        factors = matrix.promoted()
        B, A = factors.B, factors.A
        return cls(matrix.shape, B.dtype, B.device, lambda place: B[place] @ A, factors)

    def then(self, function: Callable[[slice, Tensor], Tensor]) -> "RowStream":
        """The stream of ``function(place, rows)``, which may overwrite rows that are formed."""
        return replace(self, form=lambda place: function(place, self.form(place)), whole=None)

    def to(self, dtype: torch.dtype) -> "RowStream":
        """The same rows in another precision."""
        return replace(self.then(lambda _, rows: rows.to(dtype)), dtype=dtype)

    def scaled(self, c: float) -> "RowStream":
        """``c`` times the matrix."""
        return self if c == 1 else self.then(lambda _, rows: c * rows)

    def blocks(self, function: Callable[[slice, Tensor], Answer]) -> Iterator[Answer]:
        """``function(place, rows)`` of every block, from the first row to the last, in as many threads as torch has."""
        for answers in self._map_strips(lambda places: [function(place, self.form(place)) for place in places]):
            yield from answers

    def strips(self, function: Callable[[slice, Tensor], Answer]) -> Iterator[Answer]:
        """The same of several blocks at a time, as many as make a product worth while."""

        def join(places: list[slice]) -> Answer:
            place = slice(places[0].start, places[-1].stop)
            return function(place, self._rows(place, places))

        return self._map_strips(join)

    def dense(self) -> Tensor:
        """The whole matrix."""
        if self.whole is not None:
            return self.whole
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for _ in self.blocks(lambda place, rows: whole[place].copy_(rows)):
            pass
        return whole

    def held(self) -> "RowStream":
        """The same with its rows formed once and kept."""
        return replace(RowStream.of(self.dense()), near=self.near)

    def squared_norm(self) -> float:
        """``||W||_F^2``."""
        return sum(self.blocks(lambda _, rows: float(sum_of_squares(rows))))

    def _rows(self, place: slice, blocks: list[slice]) -> Tensor:
        if self.whole is not None:
            held: Tensor = self.whole[place]
            return held
        rows = torch.empty(place.stop - place.start, self.shape[1], dtype=self.dtype, device=self.device)
        for block in blocks:
            rows[block.start - place.start : block.stop - place.start] = self.form(block)
        return rows

    def _map_strips(self, function: Callable[[list[slice]], Answer]) -> Iterator[Answer]:
        on_cpu = self.device.type == "cpu"
        # 16 rows of width 8192 stay in a core's cache, fewer make a slow product; an accelerator wants large launches.
        size = max((1 << 17 if on_cpu else 1 << 24) // max(self.shape[1], 1), 16)
        places = [slice(start, min(start + size, self.shape[0])) for start in range(0, self.shape[0], size)]
        together = min(len(places) // 8 + 1, 16) if on_cpu else 1
        strips = [places[first : first + together] for first in range(0, len(places), together)]
        if on_cpu and len(strips) == 1:
            with in_one_thread():
                return iter([function(strips[0])])
        return map_in_order(function, strips, torch.get_num_threads() if on_cpu else 1, ahead=2)


# An update of one weight: factors, or the rows of a dense matrix.
Update = LowRank | RowStream


def add_up(updates: Sequence[Update]) -> Update:
    """The sum: of factors as stacked factors, otherwise as rows. All are of one shape, in one precision and place."""
    factors = [update for update in updates if isinstance(update, LowRank)]
    if len(factors) == len(updates):
        return stack(factors)
    streams = [RowStream.of(update) for update in updates]
    return replace(
        streams[0],
        form=lambda place: reduce(torch.add, [stream.form(place) for stream in streams]),
        near=None,
        whole=None,
    )


def sum_of_squares(rows: Tensor) -> Tensor:
    """The sum of squares, float64, of rows ``(n, d)`` in any precision: exact to rounding whatever their number."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.to(torch.float64).square().sum()
