"""Random draws, trimming and elections on dense float64 arrays with NumPy, for the references of the rules."""

import hashlib

import numpy as np

Array = np.ndarray


def splitmix(state: Array) -> Array:
    """The number of SplitMix64 at each state, uint64: as Vigna's C code has it."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws(shape: tuple[int, int], seed: int, layer: str, adapter: str) -> Array:
    key = hashlib.sha256(f"{seed}\0{layer}\0{adapter}".encode()).digest()
    pairs = (shape[1] + 1) // 2
    counter = np.arange(1, shape[0] * pairs + 1, dtype=np.uint64).reshape(shape[0], pairs)
    numbers = splitmix(counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(key[:8], "big")))
    halves = np.stack([numbers & np.uint64(0xFFFFFFFF), numbers >> np.uint64(32)], axis=2).reshape(shape[0], -1)
    # Half of the numbers are moved down: those that a signed number would hold below zero come first.
    steps = ((halves.astype(np.int64) + 2**31) % 2**32) >> 8
    return (steps / 2**24)[:, : shape[1]]


# Sparsifying.


def top(dW: Array, density: float) -> Array:
    order = np.argsort(-np.abs(dW), axis=None)[: max(int(density * dW.size), 1)]
    kept = np.zeros(dW.size)
    kept[order] = dW.ravel()[order]
    return kept.reshape(dW.shape)


def middle(dW: Array, density: float, outliers: float) -> Array:
    keep = max(int(density * dW.size), 1)
    drop = min(int(outliers * dW.size), dW.size - keep)
    order = np.argsort(-np.abs(dW), axis=None)[drop : drop + keep]
    kept = np.zeros(dW.size)
    kept[order] = dW.ravel()[order]
    return kept.reshape(dW.shape)


def bernoulli(dW: Array, density: float, *key: object) -> Array:
    return np.where(draws(dW.shape, *key) < density, dW / density, 0)


def magprune(dW: Array, density: float, window: float, *key: object) -> Array:
    width = min(window, density, 2 - 2 * density)
    probability = np.empty_like(dW)
    for row in range(len(dW)):
        ladder = np.linspace(density - width / 2, density + width / 2, dW.shape[1])
        probability[row, np.argsort(np.abs(dW[row]))] = ladder
    return np.where(draws(dW.shape, *key) < probability, dW / probability, 0)


def elect(updates: list[Array]) -> Array:
    stacked = np.stack(updates)
    sign = np.sign(stacked.sum(0))
    merged = np.zeros(stacked.shape[1:])
    for place in np.ndindex(*merged.shape):
        agreeing = [x for x in stacked[(slice(None), *place)] if x * sign[place] > 0]
        merged[place] = np.mean(agreeing) if agreeing else 0
    return merged
