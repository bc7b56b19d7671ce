"""Rules on the factors themselves: as they were trained, or learned from data by ``merging/from_data``."""

import torch
from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank, stack_factors
from osrm_cli.linalg.row_stream import Update
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.linear import task_arith
from osrm_cli.merging.methods.options import MethodOptions


def distill(layer: LayerUpdates, options: MethodOptions) -> Update:
    """The merged factors that bring the merged model nearest to the single models, by gradient steps.

    From another method's result (``start``, times ``lambda``, cut to ``rank``), Adam minimises over ``B`` and ``A`` of
    every layer, on batches of one task after the other (a classifier's texts, and ``mixed_texts`` further ones for
    each, put together from parts of two), the mean over tasks of ``mean_l ||h_l - h_l*||^2 / var h_l* +
    ||z - z*||^2 / var z* + KL(p* || p) / KL(p* || mean p*)``: ``h_l`` the inputs of some layers, ``z`` what the head's
    last layer reads, ``p`` what it says, and ``*`` the single model's own. Scores count like ``z``. Of a text task
    ``p`` is the next token's distribution at the positions of a completion that the single model has written, and the
    unit of its divergence that of the base model. The factors that are best on held-out texts are kept, so never worse
    ones than the start. Layers of ``target_modules`` that no adapter changes begin with ``B = 0`` and orthonormal rows
    of ``A``. Of a teacher on another base model only ``p`` or the scores count, three times; of a writer with another
    vocabulary, the likelihood of what it has written (arXiv:1606.07947). Compare Representation Surgery
    (arXiv:2402.02705), ProDistill (arXiv:2502.12706). Without any step it is the weighted sum.
    """
    if layer.factors is None:
        return task_arith(layer, options)
    B, A = layer.factors
    return LowRank(B, A)


FLOOR_SHARE = 0.8  # RobustMerge: the ranks' scales are raised to the value that this share of them is below
ROUNDS = 100  # of k-means, which ends much earlier


def robust_merge(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """RobustMerge (arXiv:2502.17159), as its published code has it: trimmed factors, merged apart, rank by rank.

    ``A'_t`` and ``B'_t`` keep the ``density`` share of largest entries of ``A_t`` and ``w_t B_t``; each rank ``k`` gets
    the scale ``s_tk = sum_j |A_t,kj| / sum_j |A'_t,kj|``, at least the one that 0.8 of the task's scales are below.
    Result ``lambda * B A``: ``A = sum_t A'_t``, column ``k`` of ``B`` is ``sum_t s_tk B'_t,k / sum_t s_tk``. So ranks
    of one number meet each other, and ``B A`` has cross terms between the adapters. ``lambda`` 4 is the authors' factor
    2 on both. Ranks that do nothing take no part. It depends on how the updates are factored. One adapter is itself at
    density 1. Not linear in the weights.
    """
    updates = [update.to(torch.float64) for update in layer.weighted]
    size = max(update.rank for update in updates)
    B = torch.zeros(layer.shape[0], size, dtype=torch.float64, device=updates[0].B.device)
    A = torch.zeros(size, layer.shape[1], dtype=torch.float64, device=B.device)
    total = torch.zeros(size, dtype=torch.float64, device=B.device)
    for update in updates:
        used, rank = _ranks_to_merge(update), update.rank
        kept, columns = _trim_factor(update.A, options.density), _trim_factor(update.B, options.density)
        left = kept.abs().sum(1)
        used &= left > 0
        scales = torch.where(used, update.A.abs().sum(1) / torch.where(used, left, 1.0), 0.0)
        present = scales[used].sort().values
        if len(present):
            scales[used] = scales[used].clamp_min(present[int(FLOOR_SHARE * len(present))])
        B[:, :rank] += columns * scales
        A[:rank] += kept * used[:, None]
        total[:rank] += scales
    return LowRank(B / torch.where(total > 0, total, 1.0), A).scaled(options.scale)


def lora_lego(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """LoRA-LEGO (arXiv:2409.16167): the adapters' single ranks in clusters, each cluster's mean a rank of the result.

    A rank is the vector ``[a_k, w_t b_k]`` of a row of ``A_t`` and a column of ``w_t B_t``. There are ``rank`` clusters
    by k-means, without it as many as the largest of the inputs' ranks. Each mean is brought to the mean length of its
    cluster, and the whole to ``lambda * sqrt(r / rank)``, ``r`` the mean rank of the inputs: our reading of the paper's
    two rescalings, of which no code is public. k-means begins at the longest vector and then at those that lie
    farthest from what is chosen, so that nothing is drawn at random. Ranks that do nothing take no part. It depends on
    how the updates are factored. One adapter is itself at its own rank; opposite ones need not cancel. Not linear in
    the weights.

    Raises:
        OsrmError: If a share of the energy is asked for.
    """
    if options.energy is not None:
        raise OsrmError("lora-lego takes a number of clusters, no share of the energy", "give --rank 16")
    updates = [update.to(torch.float64) for update in layer.weighted]
    parts = [torch.cat([update.A, update.B.T], dim=1)[_ranks_to_merge(update)] for update in updates]
    ranks = [len(part) for part in parts if len(part)]
    if not ranks:
        return stack_factors(updates).scaled(0.0)
    units = torch.cat(parts)
    count = min(options.rank or max(update.rank for update in updates), len(units))
    shares = _cluster_ranks((units @ units.T).cpu(), count).to(units.device)
    means = shares @ units
    lengths = shares @ units.norm(dim=1)
    means *= (lengths / means.norm(dim=1).clamp_min(torch.finfo(means.dtype).tiny))[:, None]
    growth = (sum(ranks) / len(ranks) / len(means)) ** 0.5
    return LowRank(means[:, layer.shape[1] :].T, means[:, : layer.shape[1]]).scaled(options.scale * growth)


def _ranks_to_merge(update: LowRank) -> Tensor:
    """Which ranks of a product do anything, ``(r,)``."""
    used: Tensor = (update.A.norm(dim=1) > 0) & (update.B.norm(dim=0) > 0)
    return used


def _trim_factor(matrix: Tensor, density: float) -> Tensor:
    """The ``int(density * n)`` largest entries, at least one and all that equal the last; zeros elsewhere."""
    if not matrix.numel():
        return matrix
    sizes = matrix.abs()
    return matrix * (sizes >= sizes.flatten().topk(max(int(density * matrix.numel()), 1)).values[-1])


def _cluster_ranks(gram: Tensor, count: int) -> Tensor:
    """Clusters of vectors by k-means, from their inner products ``(n, n)``.

    Returns:
        ``(k, n)``: each row has ``1 / size`` at its cluster's members; clusters without any are left out.
    """
    squares = gram.diagonal()
    chosen = [int(squares.argmax())]
    while len(chosen) < count:
        distances = squares[:, None] + squares[chosen] - 2 * gram[:, chosen]
        chosen.append(int(distances.amin(1).argmax()))
    owner = (squares[chosen] - 2 * gram[:, chosen]).argmin(1)
    shares = torch.zeros(0, len(gram))
    for _ in range(ROUNDS):
        members = owner == torch.arange(count)[:, None]
        shares = members.to(gram)[members.any(1)]
        shares /= shares.sum(1, keepdim=True)
        cross = shares @ gram
        distances = (cross * shares).sum(1, keepdim=True) - 2 * cross
        nearest = distances.argmin(0)
        if torch.equal(nearest, owner):
            break
        owner = nearest
    return shares
