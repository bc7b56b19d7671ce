"""Updates kept as factor pairs: sums, norms, truncation and the core space, without a ``(d_out, d_in)`` matrix.

The small matrices are float64 whatever the inputs are; the answers are float64 too, for the writer to round once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """An update ``B @ A`` of one linear layer, every scale folded in.

    Attributes:
        B: ``(d_out, r)``.
        A: ``(r, d_in)``.
    """

    B: Tensor
    A: Tensor

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
        update = self.at_least_float32()
        return update.B @ update.A

    def scaled(self, c: float) -> LowRank:
        """``c * B @ A``; ``A`` stays as it is."""
        update = self.at_least_float32()
        return LowRank(c * update.B, update.A)

    def at_least_float32(self) -> LowRank:
        """The same factors, half precision widened."""
        dtype = torch.promote_types(torch.promote_types(self.B.dtype, self.A.dtype), torch.float32)
        return self.to(dtype)

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same factors in another precision."""
        return LowRank(self.B.to(dtype), self.A.to(dtype))


@dataclass(frozen=True)
class Core:
    """Updates written in a shared pair of orthonormal bases: ``dW_t = Q_B @ cores[t] @ Q_A^T``, without loss.

    Attributes:
        Q_B: ``(d_out, m)``, orthonormal columns, ``m = min(d_out, sum r_t)``.
        cores: ``(T, m, n)``.
        Q_A: ``(d_in, n)``, orthonormal columns, ``n = min(d_in, sum r_t)``.
    """

    Q_B: Tensor
    cores: Tensor
    Q_A: Tensor

    def join(self, M: Tensor) -> LowRank:
        """``Q_B @ M @ Q_A^T`` as factors, for ``M`` ``(m, n)``."""
        if M.shape[0] < M.shape[1]:
            return LowRank(self.Q_B, M @ self.Q_A.T)
        return LowRank(self.Q_B @ M, self.Q_A.T)


def stack(updates: Sequence[LowRank]) -> LowRank:
    """The sum of the updates as concatenated factors, rank ``sum r_t``, exact."""
    wide = [update.at_least_float32() for update in updates]
    return LowRank(torch.cat([update.B for update in wide], dim=1), torch.cat([update.A for update in wide], dim=0))


def core_space(updates: Sequence[LowRank]) -> Core:
    """Write updates in the bases that their stacked factors span (float64).

    ``[B_1 ... B_T] = Q_B R_B`` and ``[A_1; ...; A_T]^T = Q_A R_A``; then ``M_t = R_B,t R_A,t^T`` with the columns of
    adapter ``t``. Householder QR needs no full rank: columns of zeros or repeated ones give zero rows in the cores.
    """
    exact = [update.to(torch.float64) for update in updates]
    Q_B, R_B = torch.linalg.qr(torch.cat([update.B for update in exact], dim=1))
    Q_A, R_A = torch.linalg.qr(torch.cat([update.A for update in exact], dim=0).T)
    ranks = [update.rank for update in exact]
    pairs = zip(R_B.split(ranks, dim=1), R_A.split(ranks, dim=1), strict=True)
    return Core(Q_B, torch.stack([left @ right.T for left, right in pairs]), Q_A)


def squared_norm(update: LowRank) -> float:
    """``||B A||_F^2 = tr[(B^T B)(A A^T)]``, float64, ``O(d r^2)``."""
    exact = update.to(torch.float64)
    return max(float(((exact.B.T @ exact.B) * (exact.A @ exact.A.T)).sum()), 0.0)


def signed_svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD ``U, sigma, V^T`` whose signs are settled: the largest entry of each column of ``U`` is positive.

    Args:
        M: ``(m, n)``.

    Returns:
        ``U`` ``(m, k)``, ``sigma`` ``(k,)`` in falling order, ``V^T`` ``(k, n)``, with ``k = min(m, n)``.
    """
    U, sigma, Vh = torch.linalg.svd(M, full_matrices=False)
    if U.numel() == 0:
        return U, sigma, Vh
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return U * signs, sigma, Vh * signs.T


def truncate(update: LowRank | Tensor, rank: int | None = None, energy: float | None = None) -> tuple[LowRank, float]:
    """The best approximation of an update at a rank, or at the smallest rank that keeps a share of its energy.

    With both limits, the smaller rank counts; with neither, the update's numerical rank, which loses nothing.

    Args:
        update: Factors, or a dense ``(d_out, d_in)``.
        rank: Largest rank of the result.
        energy: Share of ``||W||_F^2`` to keep, in ``(0, 1]``.

    Returns:
        Balanced factors ``U sqrt(sigma)`` and ``sqrt(sigma) V^T``, at least rank 1, and the kept share of
        ``sum sigma^2`` (1 for a zero update).
    """
    if isinstance(update, LowRank):
        core = core_space([update])
        U, sigma, Vh = signed_svd(core.cores[0])
        # Signs are settled on the long vectors: a core's own depend on how the factors were written.
        U, Vh = core.Q_B @ U, Vh @ core.Q_A.T
    else:
        U, sigma, Vh = signed_svd(update.to(torch.float64))
    share = _shares(sigma)
    kept = _kept(sigma, share, update.shape, rank, energy)
    root = sigma[:kept].sqrt()
    return LowRank(U[:, :kept] * root, root[:, None] * Vh[:kept]), float(share[kept - 1])


def _shares(sigma: Tensor) -> Tensor:
    total = sigma.square().sum()
    return sigma.square().cumsum(0) / total if total > 0 else torch.ones_like(sigma)


def _kept(sigma: Tensor, share: Tensor, shape: Sequence[int], rank: int | None, energy: float | None) -> int:
    numerical = int((sigma > sigma[0] * max(shape) * torch.finfo(sigma.dtype).eps).sum())
    limits = [numerical, len(sigma)]
    if rank is not None:
        limits.append(rank)
    if energy is not None:
        # The last cumulative share may fall short of 1 by rounding.
        limits.append(int((share < energy * (1 - math.ulp(1.0) * len(sigma))).sum()) + 1)
    return max(min(limits), 1)
