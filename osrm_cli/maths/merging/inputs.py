"""What every merging rule is given, and the one kind of result that is more than an update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.maths.lowrank import LowRank


@dataclass(frozen=True)
class LayerUpdates:
    """The updates of one layer, one per adapter.

    They are held in the order of the adapters' names, so that the order in which adapters are given cannot change a
    byte of any result.

    Attributes:
        name: Full name of the layer; keys the random draws.
        adapters: Names of the adapters, each once; they key the random draws.
        updates: ``dW_t`` as factors, all of one ``(d_out, d_in)``; ranks may differ.
        weights: ``w_t``, any sign.
        second_moments: ``C_t = E[x x^T]``, ``(d_in, d_in)``, for the rules that need features.
        fisher: Diagonal Fisher information of the entries of ``dW_t``, ``(d_out, d_in)``, non-negative.
    """

    name: str
    adapters: tuple[str, ...]
    updates: tuple[LowRank, ...]
    weights: tuple[float, ...]
    second_moments: tuple[Tensor, ...] | None = None
    fisher: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        order = sorted(range(len(self.adapters)), key=lambda index: self.adapters[index])
        for field in ("adapters", "updates", "weights", "second_moments", "fisher"):
            values = getattr(self, field)
            if values is not None:
                if len(values) != len(self.adapters):
                    raise ValueError(f"{self.name}: {len(values)} {field} for {len(self.adapters)} adapters")
                object.__setattr__(self, field, tuple(values[index] for index in order))
        if not self.adapters or len(set(self.adapters)) < len(self.adapters):
            raise ValueError(f"{self.name}: expected adapters with different names, found {self.adapters}")
        self._check()

    def _check(self) -> None:
        first = self.updates[0].shape
        for adapter, update, weight in zip(self.adapters, self.updates, self.weights, strict=True):
            if update.shape != first:
                raise OsrmError(
                    f"{self.name} is {update.shape} in adapter '{adapter}', but {first} in '{self.adapters[0]}'",
                    "merge adapters of one base model only",
                )
            if not math.isfinite(weight):
                raise OsrmError(f"weight of adapter '{adapter}' is {weight}, expected a finite number")

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.updates[0].shape

    @property
    def weighted(self) -> tuple[LowRank, ...]:
        """``w_t dW_t``."""
        return tuple(update.scaled(weight) for update, weight in zip(self.updates, self.weights, strict=True))


@dataclass(frozen=True)
class Options:
    """What a user may set; each rule reads what its row of the table names.

    Attributes:
        scale: lambda, one factor on the whole result.
        density: Share of the entries to keep, in ``(0, 1]``.
        seed: Seed of the random masks.
        rank: Rank of ``svd``; the largest rank among the inputs if ``None``.
        energy: Share of the energy that ``svd`` keeps, instead of a rank.
    """

    scale: float = 1.0
    density: float = 0.2
    seed: int = 0
    rank: int | None = None
    energy: float | None = None
