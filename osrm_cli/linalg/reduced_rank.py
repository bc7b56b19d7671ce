"""The best update of a given rank in the norm of what a layer's inputs see of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import NEAR, RowStream, truncate_rank
from osrm_cli.linalg.second_moment import ridge_cholesky


def reduce_rank(
    update: LowRank | Tensor, C: Tensor, rank: int | None = None, energy: float | None = None
) -> tuple[LowRank, float]:
    """Minimise ``E ||(W - X) x||^2 = ||(W - X) C^{1/2}||_F^2`` over the updates ``X`` of a rank.

    With the leading left singular vectors ``U_k`` of ``W L``, where ``L L^T = C``, the minimum is ``X = U_k U_k^T W``:
    Eckart-Young on ``W L``, and ``X L = U_k U_k^T W L``. ``C`` is not inverted, and any ``L`` will do: it is
    the Cholesky factor. A singular ``C`` gets a small ridge, so that directions without data count a little, as in the
    Frobenius norm, in the place of not at all. This is reduced-rank regression of the outputs ``W x`` on ``x``.

    Args:
        update: ``W``, factors or a dense ``(d_out, d_in)``.
        C: Second moment of the inputs, ``(d_in, d_in)``, of any scale.
        rank: Largest rank of the result.
        energy: Share of ``E ||W x||^2`` to keep, in ``(0, 1]``; with both limits the smaller rank counts.

    Returns:
        Balanced factors of rank at least 1, float64, and the share of ``E ||W x||^2`` that they keep.
    """
    L, _ = ridge_cholesky(C.to(torch.float64))
    W = update.to(torch.float64)
    seen, kept = truncate_rank(LowRank(W.B, W.A @ L) if isinstance(W, LowRank) else W @ L, rank, energy)
    tiny = torch.finfo(torch.float64).tiny
    U = seen.B / seen.B.norm(dim=0).clamp_min(tiny)
    rows = (U.T @ W.B) @ W.A if isinstance(W, LowRank) else U.T @ W
    root = rows.norm(dim=1).clamp_min(tiny).sqrt()
    return LowRank(U * root, rows / root[:, None]), kept


def reduce_rank_for_inputs(
    update: LowRank | RowStream, moments: Sequence[Tensor] | None, rank: int | None = None, energy: float | None = None
) -> tuple[LowRank, float]:
    """Cut an update by what the tasks' inputs see of it, or in the Frobenius norm where nothing is known of them.

    Args:
        update: Factors, or the rows of a dense ``(d_out, d_in)``.
        moments: Each task's second moment, ``(d_in, d_in)``; their sum is the norm.
        rank: Largest rank of the result.
        energy: Share of the energy to keep, see ``reduce_rank`` and ``truncate_rank``.
    """
    if moments is None:
        return truncate_rank(update, rank, energy, NEAR)
    whole = update.dense() if isinstance(update, RowStream) else update
    return reduce_rank(whole, torch.stack([C.to(torch.float64) for C in moments]).sum(0), rank, energy)
