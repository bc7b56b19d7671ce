"""Draws of a task's examples by a seed, which neither their order nor any version of Python or numpy can change."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from osrm_cli.tasks.task import Label


def draw_order_by_hash(indices: Iterable[int], *names: object) -> list[int]:
    """Indices in a random order that depends on ``names`` alone."""
    prefix = "\0".join(map(str, names))
    return sorted(indices, key=lambda index: hashlib.sha256(f"{prefix}\0{index}".encode()).digest())


def draw_stratified(labels: Sequence[Label], count: int, seed: int) -> list[int]:
    """Draw examples of every class, each class by its share.

    Args:
        labels: Class indices as integers, or scores, which make one class.
        count: How many to draw; all, in their order, where there are no more.
        seed: Decides which.

    Returns:
        Indices in ascending order. Each class has at least one, as far as ``count`` goes.
    """
    if count >= len(labels):
        return list(range(len(labels)))
    strata = [label if isinstance(label, int) else None for label in labels]
    sizes, taken = Counter(strata), Counter[int | None]()
    ranked: list[tuple[float, int, int]] = []
    for index in draw_order_by_hash(range(len(labels)), "stratified", seed):
        stratum = strata[index]
        ranked.append(((taken[stratum] + 0.5) / sizes[stratum] if taken[stratum] else 0.0, len(ranked), index))
        taken[stratum] += 1
    return sorted(index for *_, index in sorted(ranked)[:count])


def are_sorted_by_label(labels: Sequence[Label]) -> bool:
    """Whether examples come class by class, or by their score: the first of them are then no sample of all."""
    if len(labels) < 10:
        return False
    if isinstance(labels[0], float):
        return list(labels) in (sorted(labels), sorted(labels, reverse=True))
    return 1 + sum(one != other for one, other in pairwise(labels)) == len(set(labels))
