"""The memory that statistics take, and the layers in groups that fit into it, each collected in a pass of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.table import SECOND_MOMENT, Statistic, find_statistic

DEFAULT_MEMORY = "8GiB"
_UNITS = {"B": 0, "KIB": 10, "MIB": 20, "GIB": 30, "TIB": 40}
_SKETCH = "sketch:64"
WORK_BYTES = 64 << 20  # buffers of matrix products, and pieces that the allocator keeps


@dataclass(frozen=True)
class MemoryPlan:
    """How the statistics of one task are collected.

    Attributes:
        groups: Layers whose inputs are recorded, in the order in which they run; each group in a pass of its own.
        peak: Bytes that the largest group takes.
        whole: Bytes that all would take in one pass.
    """

    groups: Sequence[Sequence[str]]
    peak: int
    whole: int

    def record(self) -> dict[str, int]:
        """The same as JSON."""
        return {"memory": self.peak, "passes": len(self.groups), "memory_of_one_pass": self.whole}


@dataclass(frozen=True)
class StatisticsSize:
    """What decides how much memory statistics take.

    Attributes:
        statistics: Which of them.
        examples: Examples read.
        batch_tokens: Tokens of the largest batch.
    """

    statistics: Sequence[Statistic]
    examples: int
    batch_tokens: int

    def bytes(self, widths: Sequence[int]) -> int:
        """The most that a group of layers takes: their sums, and one layer's more while it is finished.

        A batch's inputs of one layer, as they are and in float64, and ``WORK_BYTES`` count too. The model does not.
        """
        if not widths:
            return 0
        each = {width: [row.memory(width, self.examples) for row in self.statistics] for width in set(widths)}
        held = sum(kept for width in widths for kept, _ in each[width])
        finishing = max(more for rows in each.values() for _, more in rows)
        return held + finishing + 12 * self.batch_tokens * max(widths) + WORK_BYTES


def plan_statistics_memory(layers: Mapping[str, int], size: StatisticsSize, limit: int) -> MemoryPlan:
    """Put layers into groups, as few as fit one after the other.

    Args:
        layers: Width of the inputs of each layer that is recorded, in the order in which they run.
        size: What is collected.
        limit: Bytes that a group may take.

    Raises:
        OsrmError: If a single layer takes more.
    """
    groups: list[list[str]] = []
    peak = 0
    for layer, width in layers.items():
        group = groups[-1] if groups else []
        needed = size.bytes([layers[name] for name in (*group, layer)])
        if not group or needed > limit:
            groups.append([layer])
            needed = size.bytes([width])
        else:
            group.append(layer)
        if needed > limit:
            raise _statistics_memory_error(layer, width, size, limit)
        peak = max(peak, needed)
    return MemoryPlan(groups, peak, size.bytes(list(layers.values())))


def _statistics_memory_error(layer: str, width: int, size: StatisticsSize, limit: int) -> OsrmError:
    needed = size.bytes([width])
    hint = f"give it with --memory {format_memory_size(needed, up=True)}"
    if SECOND_MOMENT in [row.name for row in size.statistics]:
        others = [row for row in size.statistics if row.name != SECOND_MOMENT]
        smaller = StatisticsSize([*others, find_statistic(_SKETCH)], size.examples, size.batch_tokens)
        hint += (
            f", or take --statistic {_SKETCH} instead of {SECOND_MOMENT}: {format_memory_size(smaller.bytes([width]))}"
        )
    found = f"the statistics of {layer}, whose inputs are {width:,} wide, take {format_memory_size(needed)}"
    return OsrmError(f"{found}, --memory allows {format_memory_size(limit)}", hint)


def parse_statistics_memory(text: str) -> int:
    """Read ``8GiB``: bytes.

    Raises:
        OsrmError: If it is not a positive number with such a unit.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT]i)?B", text.strip(), re.ASCII | re.IGNORECASE)
    size = round(float(match[1]) * 2 ** _UNITS[f"{match[2] or ''}B".upper()]) if match else 0
    if not size:
        raise OsrmError(f"memory '{text}', expected a size with its unit", "for example --memory 8GiB")
    return size


def format_memory_size(size: int, up: bool = False) -> str:
    """Bytes as ``parse_statistics_memory`` reads them, with one digit after the point.

    Args:
        size: Bytes.
        up: Round up, so that what is read again is enough.
    """
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size >= 2 ** _UNITS[unit.upper()] or unit == "B")
    tenths = size * 10 / 2 ** _UNITS[unit.upper()]
    return f"{(-(-size * 10 // 2 ** _UNITS[unit.upper()]) if up else round(tenths)) / 10:g}{unit}"
