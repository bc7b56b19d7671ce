"""Averages whose coefficients depend on the angles between the updates: exact on factors."""

import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import low_rank_cores
from osrm_cli.linalg.row_stream import Update, add_up_matrices
from osrm_cli.merging.methods.elementwise import stack_update_rows
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions

ROUNDS = 100


def model_stock(layer: LayerUpdates, options: MethodOptions) -> Update:
    """Model Stock (arXiv:2403.19522): the mean, drawn towards the base model as far as the updates disagree.

    ``lambda * t * sum_t w_t dW_t / T``, ``t = T c / (1 + (T - 1) c)`` (Eq. 7), ``c`` the mean cosine of the angles
    between two updates, as in mergekit; below 0 it counts as 0, where the formula has no meaning. LoRA adapters of
    different tasks are nearly orthogonal, so that little is left of them: it is meant for fine-tunings of one task. One
    adapter is itself. Not linear in the weights.
    """
    count, cosines = len(layer.deltas), _update_cosines(layer)
    pairs = count * (count - 1)
    cosine = max(float(cosines.sum() - cosines.diagonal().sum()) / pairs, 0.0) if pairs else 1.0
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return add_up_matrices(layer.updates).scaled(options.scale * ratio / count)


def karcher(layer: LayerUpdates, options: MethodOptions) -> Update:
    """The Karcher mean of the updates' directions on the sphere, at their mean length: SLERP for any number.

    The unit vector ``p`` with the least ``sum_t angle(p, w_t dW_t)^2``, by the fixed point ``p <- exp_p(mean_t
    log_p(u_t))``; result ``lambda * mean_t ||w_t dW_t||_F * p``. For two updates of equal norm it is SLERP (Shoemake
    1985) at the middle. mergekit's ``karcher`` does this with whole weights. The result is a sum of the updates with
    coefficients, so it is exact. One adapter is itself; opposite ones cancel. Not linear in the weights.
    """
    norms, cosines = _update_norms(layer), _update_cosines(layer)
    present = norms > 0
    units = present.to(torch.float64)  # coefficients of the unit updates
    length = float((units @ cosines @ units).clamp_min(0).sqrt())
    if length <= 1e-9 * float(units.sum()):  # nothing, or directions that cancel: no mean
        return add_up_matrices(layer.updates).scaled(0.0)
    point = units / length
    for _ in range(ROUNDS):
        cosine = (cosines @ point).clamp(-1, 1)
        angle = cosine.acos()
        factor = torch.where(angle > 1e-8, angle / angle.sin().clamp_min(1e-300), 1.0) * units / units.sum()
        step = factor - (factor @ cosine) * point
        size = float((step @ cosines @ step).clamp_min(0).sqrt())
        if size < 1e-14:
            break
        turn = torch.tensor(size, dtype=torch.float64)
        point = turn.cos() * point + turn.sin() / size * step
    scales = options.scale * norms.mean() * point / norms.clamp_min(torch.finfo(torch.float64).tiny)
    scaled = [update.scaled(float(c)) for update, c in zip(layer.updates, scales, strict=True)]
    return add_up_matrices(scaled)


def multislerp(layer: LayerUpdates, options: MethodOptions) -> Update:
    """Multi-SLERP of mergekit, of the updates: the direction of the sum of the unit updates, at the mean length.

    ``lambda * mean_t ||w_t dW_t||_F * sum_t u_t / ||sum_t u_t||_F``, ``u_t = w_t dW_t / ||w_t dW_t||_F``. mergekit
    takes a further step in the tangent space at that point, which is zero: what the ``u_t`` add up to has no part
    across itself. ``karcher`` goes on to the point whose angles to the ``u_t`` balance. Exact; one adapter is itself,
    opposite ones cancel. Not linear in the weights.
    """
    norms, cosines = _update_norms(layer), _update_cosines(layer)
    units = (norms > 0).to(torch.float64)
    length = float((units @ cosines @ units).clamp_min(0).sqrt())
    if length <= 1e-9 * float(units.sum()):
        return add_up_matrices(layer.updates).scaled(0.0)
    scales = options.scale * norms.mean() * units / length / norms.clamp_min(torch.finfo(torch.float64).tiny)
    return add_up_matrices([update.scaled(float(c)) for update, c in zip(layer.updates, scales, strict=True)])


def _update_gram(layer: LayerUpdates) -> Tensor:
    """Inner products of the weighted updates, ``(T, T)``, float64, on the CPU."""
    if layer.is_dense:
        return (
            torch.stack(list(stack_update_rows(layer.updates).blocks(lambda _, blocks: _inner_products(blocks))))
            .sum(0)
            .cpu()
        )
    return _inner_products(low_rank_cores(layer.weighted).cores).cpu()


def _inner_products(blocks: Tensor) -> Tensor:
    flat = blocks.flatten(1).to(torch.float64)
    return flat @ flat.T


def _update_norms(layer: LayerUpdates) -> Tensor:
    return _update_gram(layer).diagonal().clamp_min(0).sqrt()


def _update_cosines(layer: LayerUpdates) -> Tensor:
    """Cosines of the angles between the updates, 0 with one that is zero."""
    gram = _update_gram(layer)
    norms = gram.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return inverse[:, None] * gram * inverse
