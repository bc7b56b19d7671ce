"""Input and result of a merging rule: the updates of one layer, and a result with a mask per task."""

import math
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank, LowRankCores, low_rank_cores
from osrm_cli.linalg.row_stream import RowStream, Update


@dataclass(frozen=True)
class LayerUpdates:
    """The updates of one layer, one per adapter.

    They are held in the order of the adapters' names, so that the order in which adapters are given cannot change a
    byte of any result. Weights act before every rule: a weight of 0.7 means an update that is 0.7 times as large.

    Attributes:
        name: Full name of the layer; keys the random draws.
        adapters: Names of the adapters, each once; they key the random draws.
        deltas: ``dW_t`` as factors, all of one ``(d_out, d_in)``; ranks may differ, and are 0 for an adapter that
            does not change the layer. Of a full model, the rows of a dense ``dW_t``.
        weights: ``w_t``, any sign.
        second_moments: ``C_t = E[x x^T]`` of the layer's inputs, ``(d_in, d_in)``, for the rules that need features.
        cross_moments: ``D_t = E[x* x^T]``, ``(d_in, d_in)``: ``x`` the layer's inputs in the model merged so far,
            ``x*`` those in the single model.
        drifts: ``W_0 (D_t - C_t)``, ``(d_out, d_in)``: what the base weight ``W_0`` makes of their difference.
        factors: ``B`` ``(d_out, r)`` and ``A`` ``(r, d_in)`` of the merged update, where they were learned from data.
        fisher: Diagonal Fisher information of the entries of ``dW_t``, ``E[(dL/dW)^2]``, ``(d_out, d_in)``.
    """

    name: str
    adapters: tuple[str, ...]
    deltas: tuple[Update, ...]
    weights: tuple[float, ...]
    second_moments: tuple[Tensor, ...] | None = None
    fisher: tuple[Tensor, ...] | None = None
    cross_moments: tuple[Tensor, ...] | None = None
    drifts: tuple[Tensor, ...] | None = None
    factors: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        order = sorted(range(len(self.adapters)), key=lambda index: self.adapters[index])
        for field in ("deltas", "weights", "second_moments", "fisher", "cross_moments", "drifts", "adapters"):
            values = getattr(self, field)
            if values is not None:
                if len(values) != len(order):
                    raise ValueError(f"{self.name}: {len(values)} {field} for {len(order)} adapters")
                object.__setattr__(self, field, tuple(values[index] for index in order))
        if not order or len(set(self.adapters)) < len(order):
            raise ValueError(f"{self.name}: expected adapters with different names, found {self.adapters}")
        for adapter, update, weight in zip(self.adapters, self.deltas, self.weights, strict=True):
            if update.shape != self.shape:
                raise OsrmError(
                    f"{self.name} is {update.shape} in adapter '{adapter}', but {self.shape} in '{self.adapters[0]}'",
                    "merge adapters of one base model only",
                )
            if not math.isfinite(weight):
                raise OsrmError(f"the weight of adapter '{adapter}' is {weight}, expected a finite number")

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.deltas[0].shape

    @property
    def is_dense(self) -> bool:
        """Whether an update has no factors."""
        return any(isinstance(update, RowStream) for update in self.deltas)

    @property
    def updates(self) -> tuple[Update, ...]:
        """``w_t dW_t``, all in one precision, float32 or better; rows are formed anew whenever they are asked for."""
        dtypes = [dtype for update in self.deltas for dtype in _update_dtypes(update)]
        dtype = reduce(torch.promote_types, dtypes, torch.float32)
        return tuple(_weight_update(update.to(dtype), w) for update, w in zip(self.deltas, self.weights, strict=True))

    @property
    def weighted(self) -> tuple[LowRank, ...]:
        """``w_t dW_t`` as factors, all in one precision, float32 or better: for rules that need factors.

        Raises:
            OsrmError: If an update has none.
        """
        return tuple(_require_update_factors(self.name, update) for update in self.updates)

    def core(self) -> LowRankCores:
        """``w_t dW_t`` in float64 in a shared pair of bases; those of dense updates are the coordinates themselves."""
        if not self.is_dense:
            return low_rank_cores(self.weighted)
        dense = torch.stack([RowStream.of(update).dense().to(torch.float64) for update in self.updates])
        left, right = (torch.eye(size, dtype=dense.dtype, device=dense.device) for size in self.shape)
        return LowRankCores(left, dense, right)

    def with_deltas(self, updates: tuple[LowRank, ...]) -> "LayerUpdates":
        """The same layer with other updates, to which the weights have been applied."""
        return replace(self, deltas=updates, weights=(1.0,) * len(updates))


def _update_dtypes(update: Update) -> tuple[torch.dtype, ...]:
    return (update.B.dtype, update.A.dtype) if isinstance(update, LowRank) else (update.dtype,)


def _weight_update(update: Update, weight: float) -> Update:
    return update.scaled(weight) if isinstance(update, LowRank) else update.then(lambda _, rows: weight * rows)


def _require_update_factors(layer: str, update: Update) -> LowRank:
    if isinstance(update, LowRank):
        return update
    raise OsrmError(
        f"{layer}: this method works on factors, a full model has none", "osrm extract makes an adapter of it"
    )


@dataclass(frozen=True)
class MaskedDelta:
    """One update for all tasks, and what turns it into each task's own: **the task's name is needed at inference**.

    Attributes:
        unified: ``(d_out, d_in)``.
        masks: One boolean ``(d_out, d_in)`` per adapter, in the order of the adapters' names.
        rescalers: One factor per adapter.
    """

    unified: Tensor
    masks: tuple[Tensor, ...]
    rescalers: tuple[float, ...]

    def for_task(self, index: int) -> Tensor:
        """The update of the adapter at ``index``: ``rescaler * mask * unified``, ``(d_out, d_in)``."""
        return self.unified * self.masks[index] * self.rescalers[index]


# Factors, the rows of a dense ``(d_out, d_in)``, or a unified update with masks.
LayerResult = LowRank | RowStream | MaskedDelta
