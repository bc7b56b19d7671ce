"""A dense matrix as a stream of blocks of rows, formed in a core's cache where they are wanted and never held.

And the best approximation of an update at a rank: of factors exactly, of dense rows in few passes over them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank, low_rank_cores, numerical_rank, squared_norm, stack_factors
from osrm_cli.linalg.parallel import in_one_thread, map_in_order

Answer = TypeVar("Answer")

# The search for directions ends when no more than such a share of what is lost can be expected back.
NEAR, NEAREST = 1e-3, 1e-7
ROUNDING = 1e-9
MAX_PASSES = 16
FEW = 16  # up to this part of the smaller side, directions are sought in passes; more are decomposed exactly
OVERSAMPLING = 8  # directions of a block beyond the rank


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
        """The same of several blocks at a time, as many as make a product worth while; the rows are used again."""
        free: list[Tensor] = []  # rows made anew for each strip would leave holes in memory around the answers

        def join(places: list[slice]) -> Answer:
            place = slice(places[0].start, places[-1].stop)
            if self.whole is not None:
                return function(place, self.whole[place])
            count = place.stop - place.start
            try:
                room = free.pop()
            except IndexError:
                room = torch.empty(0, self.shape[1], dtype=self.dtype, device=self.device)
            rows = room[:count] if len(room) >= count else room.new_empty(count, self.shape[1])
            for block in places:
                rows[block.start - place.start : block.stop - place.start] = self.form(block)
            answer = function(place, rows)
            free.append(rows)
            return answer

        return self._map_strips(join)

    def dense(self) -> Tensor:
        """The whole matrix."""
        if self.whole is not None:
            return self.whole
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for _ in self.blocks(lambda place, rows: whole[place].copy_(rows)):
            pass
        return whole

    def squared_norm(self) -> float:
        """``||W||_F^2``."""
        return sum(self.blocks(lambda _, rows: float(sum_of_squares(rows))))

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


def add_up_matrices(updates: Sequence[Update]) -> Update:
    """The sum: of factors as stacked factors, otherwise as rows. All are of one shape, in one precision and place."""
    factors = [update for update in updates if isinstance(update, LowRank)]
    if len(factors) == len(updates):
        return stack_factors(factors)
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


def truncate_rank(
    update: LowRank | RowStream | Tensor,
    rank: int | None = None,
    energy: float | None = None,
    tolerance: float = NEAREST,
) -> tuple[LowRank, float]:
    """Approximate an update at a rank, or at the smallest rank that keeps a share of its energy.

    With both limits the smaller rank counts; with neither, the numerical rank, which loses nothing. Factors are always
    treated exactly (Eckart-Young, in the core space). A dense update is treated exactly through the Gram matrix of its
    smaller side, unless few directions are needed: then by a block Krylov space (Musco and Musco, arXiv:1504.05477), a
    pass over the rows for each block, which ends when no more than ``tolerance`` can be expected back: of a stream that
    resembles its ``near`` often after the first. No row is kept from one pass to the next. It gives way to the exact
    way, which holds the matrix, when it misses ``energy``. The share returned is always the one that was kept, never an
    estimate.

    Args:
        update: Factors, the rows of a dense ``(d_out, d_in)``, or that itself.
        rank: Largest rank of the result.
        energy: Share of ``||W||_F^2`` to keep, in ``(0, 1]``.
        tolerance: Share of the lost energy that need not be sought. ``NEAREST`` keeps what an exact decomposition
            keeps, to six digits; ``NEAR`` costs half of the passes or fewer.

    Returns:
        Balanced factors ``U sqrt(sigma)`` and ``sqrt(sigma) V^T`` of rank at least 1, float64, the largest entry of
        each column of ``U`` positive; and the kept share of ``sum sigma^2`` (1 for a zero update).
    """
    if isinstance(update, LowRank):
        core = low_rank_cores([update])
        U, sigma, Vh = torch.linalg.svd(core.cores[0], full_matrices=False)
        U, Vh, total = core.Q_B @ U, Vh @ core.Q_A.T, float(sigma.square().sum())
    else:
        stream = RowStream.of(update) if isinstance(update, Tensor) else update
        U, sigma, Vh, total = _decompose_row_stream(stream, rank, energy, tolerance)
    shares = sigma.square().cumsum(0) / total if total > 0 else torch.ones_like(sigma)
    size = _numerical_rank_to_keep(sigma, shares, rank, energy)
    U, Vh, root = U[:, :size], Vh[:size], sigma[:size].sqrt()
    signs = torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0).to(U.dtype)
    return LowRank(U * signs * root, (signs * root).T * Vh), min(float(shares[size - 1]), 1.0)


def _numerical_rank_to_keep(sigma: Tensor, shares: Tensor, rank: int | None, energy: float | None) -> int:
    limits = [numerical_rank(sigma)]
    if rank is not None:
        limits.append(rank)
    if energy is not None:
        limits.append(int((shares < energy - 1e-12).sum()) + 1)
    return max(min(limits), 1)


def _decompose_row_stream(
    stream: RowStream, rank: int | None, energy: float | None, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The leading singular triplets of a dense matrix, at least as many as needed, and ``||W||_F^2``."""
    few = min(stream.shape) // (FEW if rank else 2 * FEW)
    if (rank or energy) and 0 < (rank or few) <= few:
        U, sigma, Vh, total = _krylov_triplets(stream, rank or few, tolerance)
        if rank or float(sigma.square().sum()) >= (energy or 0.0) * total:
            return U, sigma, Vh, total
    return _exact_singular_triplets(stream.dense())


def _krylov_triplets(stream: RowStream, rank: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Nearly the best ``rank`` singular triplets, in the space of ``X, W^T W X, (W^T W)^2 X, ...``.

    A pass gives ``W X`` and ``W^T W X`` of the newest block ``X`` of an orthonormal basis ``Q`` of the space: with that
    all of ``W Q = P S T^T``, and of ``P^T W = S^-1 T^T (W^T W Q)^T``, which is half a step ahead. So the triplets need
    no pass of their own, and where a likeness is good, one pass finds them.
    """
    X = Q = _first_krylov_block(stream, rank)
    products, images, energies, unseen = [], [], [], float("inf")
    width, eps = rank + OVERSAMPLING, torch.finfo(stream.dtype).eps
    for _ in range(MAX_PASSES):
        product, image, total = _run_krylov_pass(stream, X.to(stream.dtype))
        products.append(product.to(torch.float64))
        images.append(image.to(torch.float64))
        U, sigma, T = _tall_svd(torch.cat(products, dim=1))
        energies.append(sigma[:rank].square())
        sought = tolerance * (total - float(energies[-1].sum())) + max(ROUNDING, eps) * total
        exact = _count_exact(sigma, sought, eps)
        if exact >= rank:
            P, rows = U[:, :exact], T[:exact] @ torch.cat(images, dim=1).T / sigma[:exact, None]
            if len(products) == 1:
                unseen = _energy_seen_at_random(products[0], P, rows)
            V, sigma, R = _tall_svd(rows.T)
            U, Vh, more = P @ R[:rank].T, V[:, :rank].T, V[:, :width]
            energies.append(sigma[:rank].square())
        else:
            Vh, more = T[:rank] @ Q.T, images[-1][:, :width]
        room = min(stream.shape) - Q.shape[1]
        if not room or _expected_krylov_gain(energies[-3:], unseen) <= sought:
            break
        X = _new_directions(Q, more[:, :room])
        Q = torch.cat([Q, X], dim=1)
    return U[:, :rank], sigma[:rank], Vh, total


def _count_exact(sigma: Tensor, sought: float, eps: float) -> int:
    """The number of rows of ``P^T W``, from the first, that rounding disturbs by less energy than is sought.

    An image's rounding, ``eps sigma_1^2``, is divided by the row's ``sigma``.
    """
    noise = (eps * sigma[0].square() / sigma).square().cumsum(0)
    return int((noise <= sought).sum())


@in_one_thread()
def _first_krylov_block(stream: RowStream, rank: int) -> Tensor:
    """Orthonormal ``(d_in, width)``: the main directions of what the matrix resembles, then random ones."""
    likeness = truncate_rank(stream.near, 2 * rank)[0].A.T if stream.near and stream.near.rank else None
    width = max(rank, 0 if likeness is None else likeness.shape[1]) + OVERSAMPLING
    draws = torch.Generator().manual_seed(0)
    directions = torch.randn(stream.shape[1], width, generator=draws, dtype=torch.float64).to(stream.device)
    if likeness is not None:
        directions = torch.cat([likeness, directions], dim=1)
    return _new_directions(directions[:, :0], directions[:, : min(width, *stream.shape)])


@in_one_thread()
def _new_directions(Q: Tensor, more: Tensor) -> Tensor:
    """An orthonormal basis of what ``more`` adds to the columns of ``Q``."""
    for _ in range(2):  # what rounding leaves of Q's directions is gone the second time
        more = torch.linalg.qr(more - Q @ (Q.T @ more)).Q
    return more


@in_one_thread()
def _tall_svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    basis, triangle = torch.linalg.qr(M)
    U, sigma, Vh = torch.linalg.svd(triangle)
    return basis @ U, sigma, Vh


def _run_krylov_pass(stream: RowStream, X: Tensor) -> tuple[Tensor, Tensor, float]:
    """``W X``, ``W^T W X`` and ``||W||_F^2``."""
    product, image = X.new_empty(stream.shape[0], X.shape[1]), torch.zeros_like(X)

    def multiply(place: slice, rows: Tensor) -> tuple[Tensor, float]:
        part = torch.mm(rows, X, out=product[place])
        return rows.T @ part, float(sum_of_squares(rows))

    total = 0.0
    for part, energy in stream.strips(multiply):
        image += part
        total += energy
    return product, image, total


@in_one_thread()
def _energy_seen_at_random(product: Tensor, P: Tensor, rows: Tensor) -> float:
    """The most energy of ``W`` along one direction that the random columns of the first block have led to.

    They are its last; what the others have led to is taken from them. ``rows`` are ``P^T W``.
    """
    random = torch.linalg.qr(product).Q[:, -OVERSAMPLING:]
    return float(torch.linalg.matrix_norm(random.T @ P @ rows, 2).square())


def _expected_krylov_gain(energies: list[Tensor], unseen: float) -> float:
    """What further steps may add to the energies ``sigma^2`` of the directions sought.

    After three steps, if gains go on falling as in the last two. After two, if those of each direction fall by
    ``unseen / sigma^2``, as in a subspace iteration, with the most energy that random directions led to.
    """
    if len(energies) < 2:
        return float("inf")
    gains = energies[-1] - energies[-2]
    last = float(gains.sum())
    if len(energies) == 2:
        falling = (unseen / energies[-1]).clamp_max(0.9)
        return float((gains.clamp_min(0) * falling / (1 - falling)).sum())
    before = float((energies[-2] - energies[-3]).sum())
    return last**2 / (before - last) if before > last else abs(last)


def _exact_singular_triplets(W: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    if W.shape[0] > W.shape[1]:
        U, sigma, Vh, total = _exact_singular_triplets(W.T)
        return Vh.T, sigma, U.T, total
    gram = torch.zeros(W.shape[0], W.shape[0], dtype=torch.float64, device=W.device)
    for columns in torch.split(W, 1024, dim=1):
        exact = columns.to(torch.float64)
        gram.addmm_(exact, exact.T)
    U = torch.linalg.eigh(gram).eigenvectors.flip(1)
    rows = (U.to(W.dtype).T @ W).to(torch.float64)
    sigma = rows.norm(dim=1)
    return U, sigma, rows / sigma.clamp_min(torch.finfo(torch.float64).tiny)[:, None], float(gram.trace())


def squared_frobenius_norm(update: Update) -> float:
    """``||dW||_F^2`` of factors, or of dense rows."""
    return update.squared_norm() if isinstance(update, RowStream) else squared_norm(update)
