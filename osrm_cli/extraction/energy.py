"""How much of a model's difference an adapter holds, by kind of tensor."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KindEnergy:
    """The part of one kind of tensors in the energy ``sum ||W - W0||_F^2`` of a whole difference.

    Attributes:
        tensors: How many of them differ.
        share: Their share of the energy.
        lost: What the adapter does not hold of them, as a share of the whole energy too.
    """

    tensors: int
    share: float
    lost: float


def energy_by_kind(
    kinds: Mapping[str, str], energies: Mapping[str, float], kept: Mapping[str, float]
) -> dict[str, KindEnergy]:
    """Sum up tensors by their kind, in the order in which the kinds appear.

    Args:
        kinds: The kind of each tensor.
        energies: ``||W - W0||_F^2`` of each tensor.
        kept: The share of its own energy that the adapter holds, of each tensor that it holds at all.
    """
    total = sum(energies.values()) or 1.0
    result = {}
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name, each in kinds.items() if each == kind]
        lost = sum(energies[name] * (1 - kept.get(name, 0.0)) for name in names)
        changed = sum(energies[name] > 0 for name in names)
        result[kind] = KindEnergy(changed, sum(energies[name] for name in names) / total, lost / total)
    return result
