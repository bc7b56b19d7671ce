"""Which entries of one update to keep, and by how much to enlarge them: the first half of every element rule.

All counts and thresholds are per layer. Papers that trim over the whole model at once differ in how much of each layer
survives; a layer at a time is what bounds memory and what sharding cannot change.
"""

import torch
from torch import Tensor

from osrm_cli.maths.merging.inputs import Options
from osrm_cli.maths.random import generator

SAMPLE = 1 << 14


def largest(delta: Tensor, density: float) -> Tensor:
    """The ``int(density * n)`` largest entries of ``delta`` by magnitude, at least one and all that equal the last."""
    magnitude = delta.abs()
    return delta * (magnitude >= _largest_but(magnitude, _count(delta, density)))


def without_tails(delta: Tensor, density: float, outliers: float) -> Tensor:
    """``delta`` without its ``outliers`` share of largest entries and without all but the ``density`` next ones.

    Where both do not fit into 1, fewer outliers are dropped (arXiv:2312.06795).
    """
    keep = _count(delta, density)
    drop = min(int(outliers * delta.numel()), delta.numel() - keep)
    magnitude = delta.abs()
    mask = magnitude >= _largest_but(magnitude, keep + drop)
    if drop:
        mask &= magnitude < _largest_but(magnitude, drop)
    return delta * mask


def at_random(delta: Tensor, options: Options, *names: str) -> Tensor:
    """Keep entries with probability ``density`` and divide by it: the same in expectation (arXiv:2311.03099)."""
    return _drawn(delta, torch.full_like(delta, options.density), options.seed, *names)


def by_magnitude(delta: Tensor, options: Options, *names: str) -> Tensor:
    """Keep entries at random, larger ones more often, and divide by their own probability (MAGPRUNE, arXiv:2406.11617).

    In each row the probability rises linearly with the rank of the magnitude, by ``window`` in all, around ``density``.
    The window narrows where it would reach above 1 or below half the density.
    """
    width = min(options.window, options.density, 2 * (1 - options.density))
    ranks = delta.abs().argsort(dim=1, stable=True).argsort(dim=1).to(delta.dtype)
    keep = options.density - width / 2 + width * ranks / max(delta.shape[1] - 1, 1)
    return _drawn(delta, keep, options.seed, *names)


def _drawn(delta: Tensor, keep: Tensor, seed: int, *names: str) -> Tensor:
    # Drawn in float32 on the CPU whatever the precision and device of the update: the same seed, the same mask.
    draws = torch.rand(delta.shape, generator=generator(seed, *names)).to(delta.device)
    return torch.where(draws < keep, delta / keep, 0.0)


def _count(delta: Tensor, density: float) -> int:
    return max(int(density * delta.numel()), 1)


def _largest_but(values: Tensor, count: int) -> Tensor:
    """The ``count``-th largest value, exactly.

    Selection over all values takes a second for 4096 x 4096. A sorted sample brackets the answer instead, the values in
    the bracket are selected from, and counting those below it proves the answer; where it cannot, all values serve.
    """
    flat = values.flatten()
    rank = flat.numel() - count  # from the smallest, which is 0
    if flat.numel() > 4 * SAMPLE:
        sample = flat[:: flat.numel() // SAMPLE | 1].sort().values
        centre, margin = rank * len(sample) // flat.numel(), len(sample) // 64
        low, high = sample[max(centre - margin, 0)], sample[min(centre + margin, len(sample) - 1)]
        below = int((flat < low).sum())
        between = flat[(flat >= low) & (flat <= high)]
        if below <= rank < below + between.numel():
            return between.kthvalue(rank - below + 1).values
    return flat.kthvalue(rank + 1).values
