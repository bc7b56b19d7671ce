"""Low-rank updates as pairs of factors: sums, norms and the core space, without a ``(d_out, d_in)`` matrix.

Whatever is decomposed is decomposed in float64 and stays float64: the writer rounds once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """An update ``B @ A`` of one linear layer, every scale folded in.

    Attributes:
        B: ``(d_out, r)``.
        A: ``(r, d_in)``.
        kept: Share of the energy that truncation left; 1 if it was not truncated.
    """

    B: Tensor
    A: Tensor
    kept_energy: float = 1.0

    @property
    def rank(self) -> int:
        """Number of columns of ``B``: an upper bound of the rank of the product."""
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Tensor:
        """The product, ``(d_out, d_in)``, in float32 or better."""
        wide = self.promoted()
        return wide.B @ wide.A

    def scaled(self, c: float) -> "LowRank":
        """``c * B @ A``; ``A`` stays as it is, and all of it where ``c`` is 1."""
        wide = self.promoted()
        return wide if c == 1 else replace(wide, B=c * wide.B)

    def promoted(self) -> "LowRank":
        """The same factors in one precision, float32 or better."""
        return self.to(torch.promote_types(torch.promote_types(self.B.dtype, self.A.dtype), torch.float32))

    def to(self, dtype: torch.dtype) -> "LowRank":
        """The same factors in another precision."""
        return replace(self, B=self.B.to(dtype), A=self.A.to(dtype))


@dataclass(frozen=True)
class Core:
    """Updates written in a shared pair of orthonormal bases: ``dW_t = Q_B @ cores[t] @ Q_A^T``, without loss.

    Attributes:
        Q_B: ``(d_out, m)``, orthonormal columns.
        cores: ``(T, m, n)``.
        Q_A: ``(d_in, n)``, orthonormal columns.
    """

    Q_B: Tensor
    cores: Tensor
    Q_A: Tensor

    def join(self, M: Tensor) -> LowRank:
        """``Q_B @ M @ Q_A^T`` as factors of rank ``min(m, n)``, for ``M`` ``(m, n)``."""
        if M.shape[0] < M.shape[1]:
            return LowRank(self.Q_B, M @ self.Q_A.T)
        return LowRank(self.Q_B @ M, self.Q_A.T)

    def principal(self) -> "Core":
        """The same updates in the bases that depend on the updates alone, not on how their factors are written.

        Left: the left singular vectors of ``[dW_1 ... dW_T]``; right: the right singular vectors of
        ``[dW_1; ...; dW_T]``. Directions that no update uses are left out, so ``m`` and ``n`` may shrink, down to 1.
        """
        U, left, _ = torch.linalg.svd(torch.cat(list(self.cores), dim=1), full_matrices=False)
        _, right, Vh = torch.linalg.svd(torch.cat(list(self.cores), dim=0), full_matrices=False)
        U, Vh = U[:, : max(numerical_rank(left), 1)], Vh[: max(numerical_rank(right), 1)]
        return Core(self.Q_B @ U, U.T @ self.cores @ Vh.T, self.Q_A @ Vh.T)


def stack(updates: Sequence[LowRank]) -> LowRank:
    """The sum of the updates as concatenated factors, rank ``sum r_t``: nothing is computed, nothing is lost."""
    wide = [update.promoted() for update in updates]
    return LowRank(torch.cat([update.B for update in wide], dim=1), torch.cat([update.A for update in wide], dim=0))


def core_space(updates: Sequence[LowRank]) -> Core:
    """Write updates in the bases that their stacked factors span.

    ``[B_1 ... B_T] = Q_B R_B`` and ``[A_1; ...; A_T]^T = Q_A R_A``; then ``M_t = R_B,t R_A,t^T`` from the columns of
    adapter ``t``. Householder QR needs no full rank: repeated or zero columns only leave rows of zeros in the cores.
    ``O(d R^2)`` for ``R = sum r_t``; ``m = min(d_out, R)`` and ``n = min(d_in, R)``.
    """
    exact = [update.to(torch.float64) for update in updates]
    Q_B, R_B = torch.linalg.qr(torch.cat([update.B for update in exact], dim=1))
    Q_A, R_A = torch.linalg.qr(torch.cat([update.A for update in exact], dim=0).T)
    ranks = [update.rank for update in exact]
    pairs = zip(R_B.split(ranks, dim=1), R_A.split(ranks, dim=1), strict=True)
    return Core(Q_B, torch.stack([left @ right.T for left, right in pairs]), Q_A)


def squared_norm(update: LowRank) -> float:
    """``||B A||_F^2`` from the triangular factors: as exact under cancellation as the dense sum, ``O(d r^2)``."""
    return float(core_space([update]).cores.square().sum())


def numerical_rank(sigma: Tensor, largest: float | None = None) -> int:
    """How many singular values stand above rounding.

    Args:
        sigma: Singular values in falling order, ``(k,)``.
        largest: Size of what they were computed from, where that exceeds ``sigma[0]`` because terms cancelled.
    """
    if not len(sigma):
        return 0
    bound = max(float(sigma[0]), largest or 0.0) * 64 * len(sigma) * torch.finfo(sigma.dtype).eps
    return int((sigma > bound).sum())


def truncate(update: LowRank | Tensor, rank: int | None = None, energy: float | None = None) -> tuple[LowRank, float]:
    """Approximate an update at a rank, or at the smallest rank that keeps a share of its energy.

    With both limits the smaller rank counts; with neither, the numerical rank, which loses nothing. Factors are always
    treated exactly (Eckart-Young, in the core space). A dense update is treated exactly through the Gram matrix of its
    smaller side, unless few directions are needed: then by subspace iteration (Halko et al., arXiv:0909.4061), which
    ends when a round adds less than ``STALLED`` of the energy. It is the optimum on spectra that fall and up to 0.002
    short of it on white noise, and gives way to the exact way when it misses ``energy``. The share returned is always
    the one that was kept, ``||U_k^T W||_F^2 / ||W||_F^2``, never an estimate.

    Args:
        update: Factors, or a dense ``(d_out, d_in)``.
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
        U, sigma, Vh, total = _decompose(update, rank, energy)
    shares = sigma.square().cumsum(0) / total if total > 0 else torch.ones_like(sigma)
    size = _rank_to_keep(sigma, shares, rank, energy)
    U, Vh, root = U[:, :size], Vh[:size], sigma[:size].sqrt()
    signs = torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0).to(U.dtype)
    return LowRank(U * signs * root, (signs * root).T * Vh), min(float(shares[size - 1]), 1.0)


MIN_GAIN = 1e-6  # subspace iteration ends when a round raises the kept share by less
MAX_ITERATIONS = 12


def _rank_to_keep(sigma: Tensor, shares: Tensor, rank: int | None, energy: float | None) -> int:
    limits = [numerical_rank(sigma)]
    if rank is not None:
        limits.append(rank)
    if energy is not None:
        limits.append(int((shares < energy - 1e-12).sum()) + 1)
    return max(min(limits), 1)


def _decompose(W: Tensor, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """The leading singular triplets of a dense matrix, at least as many as needed, and ``||W||_F^2``."""
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    if W.shape[0] > W.shape[1]:
        U, sigma, Vh, total = _decompose(W.T, rank, energy)
        return Vh.T, sigma, U.T, total
    total = sum(float(rows.to(torch.float64).square().sum()) for rows in torch.split(W, 512))
    few = W.shape[0] // (16 if rank else 32)
    if (rank or energy) and 0 < (rank or few) <= few:
        U, sigma, Vh = _triplets(_subspace(W, rank or few, total), W)
        if rank or float(sigma.square().sum()) >= (energy or 0.0) * total:
            return U, sigma, Vh, total
    gram = torch.zeros(W.shape[0], W.shape[0], dtype=torch.float64, device=W.device)
    for columns in torch.split(W, 1024, dim=1):
        exact = columns.to(torch.float64)
        gram.addmm_(exact, exact.T)
    return *_triplets(torch.linalg.eigh(gram).eigenvectors.flip(1), W), total


def _subspace(W: Tensor, rank: int, total: float) -> Tensor:
    """Nearly the best ``rank`` left singular vectors of ``W``, and a few more: ``(d_out, rank + oversampling)``."""
    width = min(rank + max(8, rank // 2), W.shape[0])
    start = torch.randn(W.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=W.dtype)
    Q, energy = torch.linalg.qr(W @ start.to(W.device)).Q, -1.0
    best: Tensor = Q
    for _ in range(MAX_ITERATIONS):
        projected = W.T @ Q
        values, turn = torch.linalg.eigh((projected.T @ projected).to(torch.float64))
        if float(values[-rank:].sum()) <= energy + MIN_GAIN * total:
            break
        energy = float(values[-rank:].sum())
        best = Q.to(torch.float64) @ turn.flip(1)
        Q = torch.linalg.qr(W @ torch.linalg.qr(projected).Q).Q
    return best


def _triplets(U: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U, sigma, V^T`` of ``U U^T W`` for left singular vectors ``U`` ``(d_out, k)``, strongest first."""
    rows = (U.to(W.dtype).T @ W).to(torch.float64)
    sigma = rows.norm(dim=1)
    return U, sigma, rows / sigma.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
