"""Rules on singular vectors and values, exact in the core space: results have rank at most ``sum r_t``."""

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank, LowRankCores, numerical_rank
from osrm_cli.linalg.subspaces import polar_factor
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions


def tsv(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """TSV-M (arXiv:2412.00081): whiten the stacked singular vectors of the tasks against each other.

    ``w_t dW_t = U_t S_t V_t^T``, cut to ``min(d_out, d_in) / T`` triplets; ``U = [U_1 ... U_T]``, ``V`` alike; result
    ``lambda * polar(U) diag(S_1 ... S_T) polar(V)^T``. Triplets with singular value 0 are left out: the authors' dense
    code keeps them when a LoRA has fewer than its share, so that arbitrary null vectors enter its polar factors. One
    adapter is itself. Not linear in the weights: two equal adapters give one of them.
    """
    core = layer.core()
    share = max(min(layer.shape) // len(layer.adapters), 1)
    U, S, V = _join_update_triplets([_leading_update_triplets(M, share) for M in core.cores])
    return core.join(options.scale * (polar_factor(U) * S) @ polar_factor(V).T)


def iso_c(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """Iso-C (arXiv:2502.04959): the sum with all its singular values replaced by their mean.

    ``sum_t w_t dW_t = U S V^T``; result ``lambda * mean(S) * U V^T`` over the directions that the sum has. The authors'
    dense code counts ``min(d_out, d_in)`` of them: its mean is smaller by ``rank / min(d_out, d_in)``, so its lambda
    does not carry over, and it gives that mean to null vectors too, which are arbitrary. Equal to it where the updates
    fill the width. One adapter is not itself, and not linear in the weights, by design.
    """
    core = layer.core()
    U, S, V = _leading_update_triplets(core.cores.sum(0), None, _largest_update_norm(core))
    return core.join(options.scale * _mean_singular_value(S) * U @ V.T)


def iso_cts(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """Iso-CTS (arXiv:2502.04959): Iso-C on the common directions joined by directions of each task's own.

    Of the ``k`` directions that the updates span, about ``common * k`` come from the sum, so many that the rest divides
    evenly: each task adds the leading ones of ``(I - U_c U_c^T) w_t dW_t``. The joined vectors are whitened by their
    polar factors, all singular values replaced by the mean. One adapter is not itself, and not linear in the weights.
    """
    core = layer.core().in_principal_bases()
    size, tasks = _largest_update_norm(core), len(layer.adapters)
    directions = min(core.cores.shape[1:])
    own = round((directions - int(directions * options.common)) / tasks)
    U, S, V = _leading_update_triplets(core.cores.sum(0), max(directions - own * tasks, 1), size)
    parts = [(U, S, V)]
    if own:
        parts += [_leading_update_triplets(M - U @ (U.T @ M), own, size) for M in core.cores]
    U, S, V = _join_update_triplets(parts)
    return core.join(options.scale * _mean_singular_value(S) * polar_factor(U) @ polar_factor(V).T)


def svc(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """Singular value calibration (arXiv:2602.05536): divide each singular value of the sum by how often it counts.

    ``W = sum_t w_t dW_t = U S V^T``; along ``u_r`` the sum answers task ``t`` with
    ``s_rt = <u_r^T W, u_r^T dW_t> / ||u_r^T dW_t||^2``; result ``lambda * U diag(S_r / mean_t max(s_rt, floor)) V^T``.
    One adapter is itself at ``floor <= 1``. Not linear in the weights.
    """
    core = layer.core()
    W = core.cores.sum(0)
    U, S, V = _leading_update_triplets(W, None, _largest_update_norm(core))
    answers = U.T @ core.cores  # (T, k, n)
    energy = answers.square().sum(-1)
    overlap = ((U.T @ W) * answers).sum(-1) / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return core.join(options.scale * (U * (S / overlap.clamp_min(options.floor).mean(0))) @ V.T)


def _largest_update_norm(core: LowRankCores) -> float:
    """The largest norm among the updates: what rounding in their sum is measured against."""
    return float(core.cores.flatten(1).norm(dim=1).max())


def _leading_update_triplets(M: Tensor, count: int | None, size: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` leading singular triplets ``U, S, V`` of ``M`` that stand above rounding."""
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    keep = min(numerical_rank(S, size), count or len(S))
    return U[:, :keep], S[:keep], Vh[:keep].T


def _mean_singular_value(S: Tensor) -> Tensor:
    """The mean, 0 of nothing."""
    return S.sum() / max(len(S), 1)


def _join_update_triplets(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    U, S, V = zip(*parts, strict=True)
    return torch.cat(U, dim=1), torch.cat(S), torch.cat(V, dim=1)
