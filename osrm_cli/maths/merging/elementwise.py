"""Rules on the entries of the updates: sparsify each, then add, or elect a sign and combine the entries that agree.

Updates are made dense one at a time and again when they are needed again, so memory is a few ``(d_out, d_in)`` in
float32, whatever the number of adapters. Results are dense. The same functions serve the core space and the shared
basis of KnOTS, where "entry" means a coordinate.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from osrm_cli.maths.merging.inputs import LayerUpdates, Options
from osrm_cli.maths.merging.sparsify import at_random, by_magnitude, largest, without_tails

Sparse = Callable[[], Iterator[Tensor]]


def ties(layer: LayerUpdates, options: Options) -> Tensor:
    """TIES (arXiv:2306.01708): trim each ``w_t dW_t`` to its ``density`` largest entries, elect signs, merge.

    ``x_t = trim(w_t dW_t)``, ``gamma = sign(sum_t x_t)``, result ``lambda * mean {x_t : sign(x_t) = gamma}``, or their
    sum. One adapter is itself at density 1; below, it is its trimmed self. Not linear in the weights.
    """
    return options.scale * _elected(lambda: (largest(dW, options.density) for dW in _dense(layer)), options.aggregate)


def magnitude(layer: LayerUpdates, options: Options) -> Tensor:
    """``lambda * sum_t trim(w_t dW_t)``: each update reduced to its ``density`` largest entries, then added.

    What PEFT calls ``magnitude_prune``. One adapter is itself at density 1.
    """
    return options.scale * added(largest(dW, options.density) for dW in _dense(layer))


def breadcrumbs(layer: LayerUpdates, options: Options) -> Tensor:
    """Model Breadcrumbs (arXiv:2312.06795): ``lambda * sum_t m_t * w_t dW_t``, ``m_t`` without both tails.

    ``outliers`` of the largest entries and all but the ``density`` next ones are dropped. One adapter is itself at
    density 1, where no outlier is dropped.
    """
    return options.scale * added(without_tails(dW, options.density, options.outliers) for dW in _dense(layer))


def dare(layer: LayerUpdates, options: Options) -> Tensor:
    """DARE (arXiv:2311.03099): ``lambda * sum_t m_t * w_t dW_t / density``, ``m_t`` Bernoulli(``density``).

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1.
    """
    return options.scale * added(
        at_random(dW, options, layer.name, adapter) for adapter, dW in zip(layer.adapters, _dense(layer), strict=True)
    )


def dare_ties(layer: LayerUpdates, options: Options) -> Tensor:
    """DARE's random drop in the place of TIES's trimming; then TIES's election and mean (arXiv:2311.03099).

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1. Not
    linear in the weights.
    """
    return options.scale * _elected(
        lambda: (
            at_random(dW, options, layer.name, adapter)
            for adapter, dW in zip(layer.adapters, _dense(layer), strict=True)
        ),
        options.aggregate,
    )


def della(layer: LayerUpdates, options: Options) -> Tensor:
    """DELLA (arXiv:2406.11617): drop small entries more often than large ones, rescale, elect signs, merge as in TIES.

    Masks are independent, so opposite adapters cancel in expectation only; one adapter is itself at density 1. Not
    linear in the weights.
    """
    return options.scale * _elected(
        lambda: (
            by_magnitude(dW, options, layer.name, adapter)
            for adapter, dW in zip(layer.adapters, _dense(layer), strict=True)
        ),
        options.aggregate,
    )


def _dense(layer: LayerUpdates) -> Iterator[Tensor]:
    return (update.dense() for update in layer.weighted)


def added(updates: Iterator[Tensor]) -> Tensor:
    """``sum_t x_t``, one in memory at a time."""
    total = next(updates).clone()
    for update in updates:
        total += update
    return total


def elected_sign(updates: Iterator[Tensor]) -> Tensor:
    """``sign(sum_t x_t)``; 0 where the sum is nothing but rounding, so that opposite updates cancel.

    The authors of TIES give such entries the sign of the majority of all entries; they are zero in every update, or the
    updates cancel, so here they stay zero.
    """
    total = next(updates).clone()
    magnitude = total.abs()
    for update in updates:
        total += update
        magnitude += update.abs()
    total[total.abs() <= 4 * torch.finfo(total.dtype).eps * magnitude] = 0
    return total.sign_()


def _elected(updates: Sparse, aggregate: str) -> Tensor:
    """The mean, or the sum, of the entries whose sign is the elected one."""
    sign = elected_sign(updates())
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for update in updates():
        agrees = update * sign > 0
        total += update * agrees
        count += agrees
    return total if aggregate == "sum" else total / count.clamp_(min=1)
