"""The statistics that ``osrm collect`` can compute. Importing this module does not import torch."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.panels import moment_panels

if TYPE_CHECKING:
    from collections.abc import Callable

    from osrm_cli.features.statistics.accumulators import Accumulator


@dataclass(frozen=True)
class Statistic:
    """One row of the table.

    Attributes:
        name: What the user types, and the tensor's name in a features file.
        summary: One line for help and completion.
        accumulator: ``module:Class`` in ``features.statistics``; empty for the gradient, which is not one of inputs.
        size: Rows of a sketch; ``None`` for a statistic that has no size.
    """

    name: str
    summary: str
    accumulator: str
    size: int | None = None

    @property
    def kind(self) -> str:
        """The name without its size: ``sketch`` for ``sketch:64``."""
        return self.name.partition(":")[0]

    def shape(self, d_in: int, d_out: int) -> tuple[int | None, ...]:
        """Shape of its tensor for a layer; ``None`` for any number of rows."""
        shapes: dict[str, tuple[int | None, ...]] = {
            "mean": (d_in,),
            "samples": (None, d_in),
            "second-moment": (d_in, d_in),
            "sketch": (self.size, d_in),
            "gradient": (d_out, d_in),
        }
        return shapes[self.kind]

    def memory(self, d_in: int, examples: int) -> tuple[int, int]:
        """What one layer takes: bytes held between batches, and bytes more while it is sent or finished.

        Args:
            d_in: Width of the inputs.
            examples: Examples read.
        """
        held = {
            "mean": 8 * d_in,
            "samples": (8 * d_in + _TENSOR_BYTES) * examples,
            "second-moment": 8 * sum(rows * columns for rows, columns in moment_panels(d_in)),
            "sketch": 4 * 8 * (self.size or 0) * d_in,
            "gradient": 0,
        }[self.kind]
        if self.kind != SECOND_MOMENT:
            return held, 4 * held
        return held, 8 * d_in**2  # the whole in float64, to be sent; in float32 and a part of it, to be written

    def load(self) -> Callable[[int], Accumulator]:
        """The function that creates an empty accumulator for inputs of width ``d_in``; this imports torch."""
        module, _, name = self.accumulator.partition(":")
        accumulator: Callable[..., Accumulator] = getattr(
            importlib.import_module(f"osrm_cli.features.statistics.{module}"), name
        )
        return accumulator if self.size is None else partial(accumulator, size=self.size)


STATISTICS = (
    Statistic("mean", "mean over all attended tokens, (d_in,)", "accumulators:MeanAccumulator"),
    Statistic("samples", "token mean of every example, (k, d_in)", "accumulators:SamplesAccumulator"),
    Statistic(
        "second-moment", "uncentred second moment of the tokens, (d_in, d_in)", "accumulators:SecondMomentAccumulator"
    ),
    Statistic(
        "sketch:m",
        "Frequent Directions of m rows, (m, d_in), for wide models",
        "frequent_directions:FrequentDirections",
    ),
    Statistic("gradient", "gradient of the task's loss, (d_out, d_in), from labels", ""),
)


def find_statistic(name: str) -> Statistic:
    """Look a statistic up by name; ``sketch:64`` is a sketch of 64 rows.

    Raises:
        OsrmError: If the name is unknown, or a sketch has no positive size.
    """
    kind, _, size = name.strip().replace("_", "-").partition(":")
    statistic = {row.kind: row for row in STATISTICS}.get(kind)
    if statistic is None or (size and statistic.kind != "sketch"):
        names = [row.name for row in STATISTICS]
        near = difflib.get_close_matches(kind, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else None
        raise OsrmError(f"unknown statistic '{name}', expected one of: {', '.join(names)}", hint)
    if statistic.kind != "sketch":
        return statistic
    if not (size.isascii() and size.isdigit() and len(size) < 10 and 0 < int(size) <= MAX_SKETCH_ROWS):
        raise OsrmError(
            f"statistic '{name}' has no valid size, expected sketch:m with 1 to {MAX_SKETCH_ROWS} rows",
            "for example sketch:64",
        )
    return replace(statistic, name=f"sketch:{int(size)}", size=int(size))


SECOND_MOMENT = "second-moment"
_TENSOR_BYTES = 1024  # that a small tensor takes beside its numbers
MAX_SKETCH_ROWS = 2**16  # far beyond the width of any layer, above which a second moment is smaller
