"""Rules that take out of each update what the other tasks' inputs would see of it."""

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank, numerical_rank, stack
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions


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
            return stack(updates).scaled(options.scale)
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
    return stack(trimmed).scaled(options.scale)
