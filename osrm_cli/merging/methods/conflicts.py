"""Rules that take out of each update what the other tasks' inputs would see of it."""

import torch
from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank, LowRankCores, numerical_rank, stack_factors
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods.elementwise import stack_update_rows
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.sparsify import keep_largest

SHARED = 6  # DOGE: one in so many of the tasks' leading directions is shared
ROUNDS = 500


def cat_merging(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """CAT Merging (arXiv:2505.06977) of linear layers: ``lambda * sum_t (I - P_t) w_t dW_t``.

    For each task ``k``, ``B_k`` are the ``trim`` leading eigenvectors of ``sum_{i != k} dW_i (C_k - penalty C_i)
    dW_i^T``: output directions in which the others' updates change task ``k``'s outputs most, and their own tasks'
    least; only positive eigenvalues count. ``P_t`` projects onto the span of all ``B_k`` with ``k != t``; the paper
    applies the projections one after the other, which depends on the order. Exact as an adapter. One adapter is itself.
    Not linear in the weights.

    Raises:
        OsrmError: If there are no second moments.
    """
    if layer.second_moments is None:
        raise OsrmError(
            f"cat-merging needs second moments of {layer.name}'s inputs, none were given",
            "osrm collect --statistic second-moment",
        )
    updates = [update.to(torch.float64) for update in layer.weighted]
    moments = [C.to(torch.float64) for C in layer.second_moments]
    bases = []
    for task, C in enumerate(moments):
        others = [
            (update, own) for place, (update, own) in enumerate(zip(updates, moments, strict=True)) if place != task
        ]
        if not others:
            return stack_factors(updates).scaled(options.scale)
        Q, R = torch.linalg.qr(torch.cat([update.B for update, _ in others], dim=1))
        inner = torch.zeros(R.shape[1], R.shape[1], dtype=R.dtype, device=R.device)
        start = 0
        for update, own in others:
            part = slice(start, start := start + update.rank)
            inner[part, part] = update.A @ (C - options.penalty * own) @ update.A.T
        values, vectors = torch.linalg.eigh(R @ inner @ R.T)
        least = 1e-12 * float(values.abs().max()) if len(values) else 0.0
        chosen = vectors[:, values > least].flip(1)[:, : options.trim]
        bases.append(Q @ chosen)
    trimmed = []
    for task, update in enumerate(updates):
        spans = torch.cat([basis for place, basis in enumerate(bases) if place != task], dim=1)
        U, S, _ = torch.linalg.svd(spans, full_matrices=False)
        Q = U[:, : numerical_rank(S)]
        trimmed.append(LowRank(update.B - Q @ (Q.T @ update.B), update.A))
    return stack_factors(trimmed).scaled(options.scale)


def doge_ta(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """DOGE on task arithmetic (arXiv:2501.01230), its correction in closed form.

    ``l_t = mean_s ||w_s dW_s||_F / ||w_t dW_t||_F``; result ``lambda * sum_t l_t m_t (w_t dW_t + D)``, ``m_t`` the
    ``density`` share of the largest entries of ``dW_t``. ``D`` minimises ``sum_ti <v_ti, v_ti - (sum_s l_s (v_s +
    D))_i>^2`` over tasks and rows ``i``, ``v_t = w_t dW_t``: along each task's row the sum shall be as long as it.
    ``D`` has no part in the subspace that the tasks share: of the left singular vectors of all tasks' ``min(d_out,
    d_in) / T`` leading ones, the first sixth. The authors take 400 steps of Adam towards it, whose entries' own rates
    leave the subspace again; here it is the least-squares solution of least norm, by conjugate gradients in the core's
    coordinates, of rank ``sum r_t``. Their ``l_t`` are ``lambda / ||dW_t||_F``. One adapter is itself at density 1.
    Not linear in the weights.
    """
    core, updates = layer.core(), layer.weighted
    norms = core.cores.flatten(1).norm(dim=1)
    present = norms > 0
    if not bool(present.any()):
        return RowStream.of(stack_factors(updates)).scaled(0.0)
    shares = torch.where(present, norms[present].mean() / torch.where(present, norms, 1.0), 0.0)
    rows = core.Q_B @ core.cores  # (T, d_out, n): every update in the coordinates of its inputs
    wanted = (rows * (rows - (shares[:, None, None] * rows).sum(0))).sum(2)
    correction = (
        _least_conflict_correction(rows, wanted, _shared_task_directions(core, min(layer.shape))) / shares.sum()
    )
    D = LowRank(correction, core.Q_A.T).to(updates[0].B.dtype)
    keep = [keep_largest(update, options.density) for update in updates]

    def combine(place: slice, blocks: Tensor) -> Tensor:
        total = torch.zeros_like(blocks[0])
        for share, trim, whole in zip(shares.cpu().tolist(), keep, blocks, strict=False):
            kept = whole.clone()
            trim(place, kept)
            total.add_(kept.add_(blocks[-1] * (kept != 0)), alpha=share)
        return total.mul_(options.scale)

    return stack_update_rows((*updates, D)).then(combine)


def _shared_task_directions(core: LowRankCores, width: int) -> Tensor:
    """An orthonormal basis of what the tasks' leading output directions share, ``(d_out, k)``."""
    leading = []
    for M in core.cores:
        U, S, _ = torch.linalg.svd(M, full_matrices=False)
        leading.append(U[:, : min(numerical_rank(S), max(width // len(core.cores), 1))])
    joined = torch.cat(leading, dim=1)
    basis: Tensor = torch.linalg.svd(joined, full_matrices=False)[0]
    return core.Q_B @ basis[:, : joined.shape[1] // SHARED]


def _least_conflict_correction(rows: Tensor, wanted: Tensor, shared: Tensor) -> Tensor:
    """The ``X`` of least norm across ``shared`` with the least ``sum_ti (<rows_ti, X_i> - wanted_ti)^2``.

    Args:
        rows: ``(T, d_out, n)``.
        wanted: ``(T, d_out)``.
        shared: Orthonormal columns, ``(d_out, k)``.

    Returns:
        ``(d_out, n)``, by conjugate gradients on the normal equations.
    """

    def back(residual: Tensor) -> Tensor:
        X = (residual[:, :, None] * rows).sum(0)
        return X - shared @ (shared.T @ X)

    X = torch.zeros_like(rows[0])
    residual = wanted
    direction = slope = back(residual)
    size = float(slope.square().sum())
    rounding = 1e-26 * float(rows.square().sum() * wanted.square().sum())
    for _ in range(ROUNDS):
        if size <= rounding:
            break
        seen = (rows * direction).sum(2)
        step = size / float(seen.square().sum())
        X, residual = X + step * direction, residual - step * seen
        slope = back(residual)
        size, before = float(slope.square().sum()), size
        direction = slope + size / before * direction
    return X
