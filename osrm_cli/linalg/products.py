"""Entrywise and Kronecker products of matrices as factors, exactly: what LoHa and LoKr multiply up."""

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank


def factor_with_identity(W: Tensor) -> LowRank:
    """A matrix as factors of the rank of its smaller side, one of them the identity."""
    d_out, d_in = W.shape
    if d_out < d_in:
        return LowRank(torch.eye(d_out, dtype=W.dtype, device=W.device), W)
    return LowRank(W, torch.eye(d_in, dtype=W.dtype, device=W.device))


def entrywise_product(first: LowRank, second: LowRank) -> LowRank:
    """``(B_1 A_1) * (B_2 A_2)``, entry by entry.

    Row ``i`` of the new B is the Kronecker product of the rows ``i`` of the two, column ``j`` of the new A that of the
    columns ``j``: rank ``r_1 r_2``, or that of the smaller side where that is less.
    """
    if first.rank * second.rank > min(first.shape):
        return factor_with_identity((first.B @ first.A) * (second.B @ second.A))
    B = torch.einsum("oi,oj->oij", first.B, second.B).flatten(1)
    A = torch.einsum("id,jd->ijd", first.A, second.A).flatten(0, 1)
    return LowRank(B, A)


def kronecker_product(first: LowRank, second: LowRank) -> LowRank:
    """``(B_1 A_1) (x) (B_2 A_2) = (B_1 (x) B_2) (A_1 (x) A_2)``, of rank ``r_1 r_2``."""
    return LowRank(
        torch.kron(first.B.contiguous(), second.B.contiguous()), torch.kron(first.A.contiguous(), second.A.contiguous())
    )
