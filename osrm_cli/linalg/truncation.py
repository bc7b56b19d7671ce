"""The best approximation of an update at a rank: of factors exactly, of dense rows in few passes over them."""

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank, core_space, numerical_rank
from osrm_cli.linalg.parallel import in_one_thread
from osrm_cli.linalg.row_stream import RowStream, sum_of_squares

NEAR = 1e-3  # the search for directions ends when no more than this share of what is lost can be expected back
ROUNDING = 1e-9
MAX_PASSES = 12
OVERSAMPLING = 8  # directions of a block beyond the rank
HELD = 1 << 26  # entries of a matrix whose rows are formed once and kept


def truncate(
    update: LowRank | RowStream | Tensor, rank: int | None = None, energy: float | None = None
) -> tuple[LowRank, float]:
    """Approximate an update at a rank, or at the smallest rank that keeps a share of its energy.

    With both limits the smaller rank counts; with neither, the numerical rank, which loses nothing. Factors are always
    treated exactly (Eckart-Young, in the core space). A dense update is treated exactly through the Gram matrix of its
    smaller side, unless few directions are needed: then by a block Krylov space (Musco and Musco, arXiv:1504.05477), a
    pass over the rows for each block, which ends when no more than ``NEAR`` of what is lost can be expected back. It
    gives way to the exact way when it misses ``energy``. The share returned is always the one that was kept,
    ``||W V_k||_F^2 / ||W||_F^2``, never an estimate.

    Args:
        update: Factors, the rows of a dense ``(d_out, d_in)``, or that itself.
        rank: Largest rank of the result.
        energy: Share of ``||W||_F^2`` to keep, in ``(0, 1]``.

    Returns:
        Balanced factors ``U sqrt(sigma)`` and ``sqrt(sigma) V^T`` of rank at least 1, float64, the largest entry of
        each column of ``U`` positive; and the kept share of ``sum sigma^2`` (1 for a zero update).
    """
    if isinstance(update, LowRank):
        core = core_space([update])
        U, sigma, Vh = torch.linalg.svd(core.cores[0], full_matrices=False)
        U, Vh, total = core.Q_B @ U, Vh @ core.Q_A.T, float(sigma.square().sum())
    else:
        stream = RowStream.of(update) if isinstance(update, Tensor) else update
        U, sigma, Vh, total = _decompose(stream, rank, energy)
    shares = sigma.square().cumsum(0) / total if total > 0 else torch.ones_like(sigma)
    size = _rank_to_keep(sigma, shares, rank, energy)
    U, Vh, root = U[:, :size], Vh[:size], sigma[:size].sqrt()
    signs = torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0).to(U.dtype)
    return LowRank(U * signs * root, (signs * root).T * Vh), min(float(shares[size - 1]), 1.0)


def _rank_to_keep(sigma: Tensor, shares: Tensor, rank: int | None, energy: float | None) -> int:
    limits = [numerical_rank(sigma)]
    if rank is not None:
        limits.append(rank)
    if energy is not None:
        limits.append(int((shares < energy - 1e-12).sum()) + 1)
    return max(min(limits), 1)


def _decompose(stream: RowStream, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """The leading singular triplets of a dense matrix, at least as many as needed, and ``||W||_F^2``."""
    if stream.shape[0] * stream.shape[1] <= HELD:
        stream = stream.held()
    few = min(stream.shape) // (16 if rank else 32)
    if (rank or energy) and 0 < (rank or few) <= few:
        U, sigma, Vh, total = _krylov(stream, rank or few)
        if rank or float(sigma.square().sum()) >= (energy or 0.0) * total:
            return U, sigma, Vh, total
    return _exact(stream.dense())


def _krylov(stream: RowStream, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Nearly the best ``rank`` singular triplets, in the space of ``X, W^T W X, (W^T W)^2 X, ...``.

    A pass gives ``W X`` and ``W^T W X`` of the newest block ``X`` of an orthonormal basis ``Q`` of the space, and with
    that all of ``W Q``: the triplets need no pass of their own.
    """
    X = Q = _start(stream, min(rank + OVERSAMPLING, *stream.shape))
    products, energies = [], [0.0]
    for _ in range(MAX_PASSES):
        product, image, total = _pass(stream, X.to(stream.dtype))
        products.append(product.to(torch.float64))
        WQ = torch.cat(products, dim=1)
        energies.append(_energy(WQ, rank))
        room = min(stream.shape) - Q.shape[1]
        if not room or _expected(energies[-3:]) <= NEAR * (total - energies[-1]) + ROUNDING * total:
            break
        X = _new_directions(Q, image.to(torch.float64)[:, :room])
        Q = torch.cat([Q, X], dim=1)
    U, sigma, Vh = _tall_svd(WQ)
    return U[:, :rank], sigma[:rank], Vh[:rank] @ Q.T, total


@in_one_thread()
def _start(stream: RowStream, width: int) -> Tensor:
    """Orthonormal ``(d_in, width)``: the main directions of what the matrix resembles, and random ones."""
    draws = torch.Generator().manual_seed(0)
    directions = [torch.randn(stream.shape[1], width, generator=draws, dtype=torch.float64).to(stream.device)]
    if stream.near and stream.near.rank:
        directions.insert(0, truncate(stream.near)[0].A.T)
    return _new_directions(directions[0][:, :0], torch.cat(directions, dim=1)[:, :width])


@in_one_thread()
def _new_directions(Q: Tensor, more: Tensor) -> Tensor:
    """An orthonormal basis of what ``more`` adds to the columns of ``Q``."""
    joined: Tensor = torch.linalg.qr(torch.cat([Q, more], dim=1)).Q
    return joined[:, Q.shape[1] :]


@in_one_thread()
def _energy(WQ: Tensor, rank: int) -> float:
    """The energy that the best ``rank`` directions in the span of ``Q`` keep."""
    return float(torch.linalg.eigvalsh(WQ.T @ WQ)[-rank:].sum())


@in_one_thread()
def _tall_svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    basis, triangle = torch.linalg.qr(M)
    U, sigma, Vh = torch.linalg.svd(triangle)
    return basis @ U, sigma, Vh


def _pass(stream: RowStream, X: Tensor) -> tuple[Tensor, Tensor, float]:
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


def _expected(energies: list[float]) -> float:
    """What further passes may add, if gains go on falling as in the last two."""
    if len(energies) < 3:
        return float("inf")
    before, last = energies[1] - energies[0], energies[2] - energies[1]
    return last**2 / (before - last) if before > last else abs(last)


def _exact(W: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    if W.shape[0] > W.shape[1]:
        U, sigma, Vh, total = _exact(W.T)
        return Vh.T, sigma, U.T, total
    gram = torch.zeros(W.shape[0], W.shape[0], dtype=torch.float64, device=W.device)
    for columns in torch.split(W, 1024, dim=1):
        exact = columns.to(torch.float64)
        gram.addmm_(exact, exact.T)
    U = torch.linalg.eigh(gram).eigenvectors.flip(1)
    rows = (U.to(W.dtype).T @ W).to(torch.float64)
    sigma = rows.norm(dim=1)
    return U, sigma, rows / sigma.clamp_min(torch.finfo(torch.float64).tiny)[:, None], float(gram.trace())
