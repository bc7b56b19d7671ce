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
        kept_energy: Share of the energy that truncation left; 1 if it was not truncated.
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

    def padded_to_rank(self, rank: int) -> "LowRank":
        """The same product with factors of a higher rank, filled up with zeros."""
        missing = rank - self.rank
        B = torch.cat([self.B, self.B.new_zeros(self.shape[0], missing)], dim=1)
        return replace(self, B=B, A=torch.cat([self.A, self.A.new_zeros(missing, self.shape[1])]))


@dataclass(frozen=True)
class LowRankCores:
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

    def in_principal_bases(self) -> "LowRankCores":
        """The same updates in the bases that depend on the updates alone, not on how their factors are written.

        Left: the left singular vectors of ``[dW_1 ... dW_T]``; right: the right singular vectors of
        ``[dW_1; ...; dW_T]``. Directions that no update uses are left out, so ``m`` and ``n`` may shrink, down to 1.
        """
        U, left, _ = torch.linalg.svd(torch.cat(list(self.cores), dim=1), full_matrices=False)
        _, right, Vh = torch.linalg.svd(torch.cat(list(self.cores), dim=0), full_matrices=False)
        U, Vh = U[:, : max(numerical_rank(left), 1)], Vh[: max(numerical_rank(right), 1)]
        return LowRankCores(self.Q_B @ U, U.T @ self.cores @ Vh.T, self.Q_A @ Vh.T)


def stack_factors(updates: Sequence[LowRank]) -> LowRank:
    """The sum of the updates as concatenated factors, rank ``sum r_t``: nothing is computed, nothing is lost."""
    wide = [update.promoted() for update in updates]
    return LowRank(torch.cat([update.B for update in wide], dim=1), torch.cat([update.A for update in wide], dim=0))


def low_rank_cores(updates: Sequence[LowRank]) -> LowRankCores:
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
    return LowRankCores(Q_B, torch.stack([left @ right.T for left, right in pairs]), Q_A)


def squared_norm(update: LowRank) -> float:
    """``||B A||_F^2`` from the triangular factors: as exact under cancellation as the dense sum, ``O(d r^2)``."""
    return float(low_rank_cores([update]).cores.square().sum())


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
