"""Options of the merging methods, with their defaults and ranges. No torch in this file."""

import math
from dataclasses import dataclass
from typing import Literal

from osrm_cli.errors import OsrmError


@dataclass(frozen=True)
class MethodOptions:
    """What a user may set; each row of the table names the options that its rule reads.

    Attributes:
        scale: lambda, one factor on the whole result.
        density: Share of the entries to keep, in ``(0, 1]``.
        seed: Seed of the random masks.
        rank: Rank of ``svd``; without ``rank`` and ``energy``, the largest rank among the inputs.
        energy: Share of the energy that ``svd`` keeps.
        aggregate: Whether sign-electing rules take the mean or the sum of the entries that agree.
        window: DELLA: how far the drop probability varies with magnitude, its largest value minus its smallest.
        outliers: Breadcrumbs: share of the largest entries to drop.
        mask_scale: Consensus: an entry belongs to a task if ``|dW_t| >= mask_scale * |sum - dW_t|``.
        agreement: Consensus: number of tasks that must use an entry.
        common: Iso-CTS: share of the directions that the common part takes.
        floor: SVC: smallest divisor of a singular value; 1 never raises one.
        alpha: RegMean: factor on the off-diagonal entries of the second moments, in ``[0, 1]``.
    """

    scale: float = 1.0
    density: float = 0.2
    seed: int = 0
    rank: int | None = None
    energy: float | None = None
    aggregate: Literal["mean", "sum"] = "mean"
    window: float = 0.1
    outliers: float = 0.01
    mask_scale: float = 0.4
    agreement: int = 2
    common: float = 0.8
    floor: float = 1.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        for name, low in (("density", 0.0), ("energy", 0.0), ("common", 0.0), ("alpha", -math.ulp(0.0))):
            value = getattr(self, name)
            if value is not None and not low < value <= 1:
                raise OsrmError(f"{name} is {value}, expected a share up to 1")
        for name in ("window", "outliers"):
            if not 0 <= getattr(self, name) < 1:
                raise OsrmError(f"{name} is {getattr(self, name)}, expected a share below 1")
        if self.rank is not None and self.rank < 1:
            raise OsrmError(f"rank is {self.rank}, expected 1 or more")
        if not math.isfinite(self.scale):
            raise OsrmError(f"lambda is {self.scale}, expected a finite number")
