"""Statistics of a layer's inputs, accumulated batch by batch; shards add up to the whole.

All sums are kept in float64: on the device that the inputs are on, or on the CPU where the device has no float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from osrm_cli.features.statistics.panels import moment_panels
from osrm_cli.linalg.second_moment import to_float64

State = dict[str, torch.Tensor]


class Accumulator(ABC):
    """One statistic of one layer's inputs.

    Args:
        d_in: Width of the inputs.

    Attributes:
        tokens: Token positions counted so far.
        examples: Examples that gave at least one token.
    """

    def __init__(self, d_in: int) -> None:
        self.d_in = d_in
        self.tokens = 0
        self.examples = 0

    def add(self, x: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> None:
        """Count one batch.

        Args:
            x: Inputs ``(batch, length, d_in)`` of any floating type.
            mask: ``(batch, length)``, true where a token counts.
            rows: Each example's index in the task's sample, ``batch`` of them.
        """
        mask = mask.to(x.device, torch.bool)
        self._add_rows(x.detach(), mask, rows)
        self.tokens += int(mask.sum())
        self.examples += int(mask.any(dim=1).sum())

    def state(self) -> State:
        """Everything needed to go on elsewhere, as tensors: ``tokens``, ``examples`` and the sums."""
        return {"tokens": torch.tensor(self.tokens), "examples": torch.tensor(self.examples), **self._sums()}

    def layout(self) -> State:
        """Names, types and dimensions of the state's tensors, without their numbers; a size of 0 stands for any."""
        count = torch.empty((), dtype=torch.int64, device="meta")
        shapes = {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in self._parts().items()
        }
        return {"tokens": count, "examples": count, **shapes}

    def merge_state(self, state: State) -> None:
        """Take over the ``state`` of an accumulator of the same kind and width that counted other examples."""
        self._merge_sums(state)
        self.tokens += int(state["tokens"])
        self.examples += int(state["examples"])

    @abstractmethod
    def finalize(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The statistic, on the CPU."""

    def error_bound(self) -> dict[str, float]:
        """How far the finished statistic may be off, in its own terms; empty if it is exact."""
        return {}

    @abstractmethod
    def _add_rows(self, x: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> None: ...

    @abstractmethod
    def _merge_sums(self, state: State) -> None: ...

    @abstractmethod
    def _sums(self) -> State: ...

    @abstractmethod
    def _parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]: ...


class MeanAccumulator(Accumulator):
    """Mean over the counted tokens, ``(d_in,)``: what OSRM's Eq. 4 (arXiv:2505.22934) keeps of a task."""

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self._sum = torch.zeros(d_in, dtype=torch.float64)

    def finalize(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """``(1/N) sum x``, ``(d_in,)``."""
        return (self._sum.cpu() / max(self.tokens, 1)).to(dtype)

    def _add_rows(self, x: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> None:
        tokens = to_float64(x[mask])
        self._sum = self._sum.to(tokens.device) + tokens.sum(dim=0)

    def _merge_sums(self, state: State) -> None:
        self._sum = self._sum + state["sum"].to(self._sum.device)

    def _sums(self) -> State:
        return {"sum": self._sum.cpu()}

    def _parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"sum": ((self.d_in,), torch.float64)}


class SecondMomentAccumulator(Accumulator):
    """Uncentred second moment over the counted tokens, ``(d_in, d_in)``, symmetric positive semi-definite.

    Kept are panels of columns, each from the diagonal down: half of the matrix, and as fast in float64, at width 4096,
    as the whole in float32.
    """

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        shapes = moment_panels(d_in)
        # In one block, which the system has back at the end: of smaller ones the allocator keeps pieces.
        block = torch.zeros(sum(rows * columns for rows, columns in shapes), dtype=torch.float64)
        parts = torch.split(block, [rows * columns for rows, columns in shapes])
        self._panels = {d_in - shape[0]: part.view(shape) for shape, part in zip(shapes, parts, strict=True)}

    def finalize(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """``(1/N) sum x^T x``, ``(d_in, d_in)``, exactly symmetric."""
        whole = torch.empty(self.d_in, self.d_in, dtype=dtype)
        for start, panel in self._panels.items():
            here, after = slice(start, start + panel.shape[1]), slice(start + panel.shape[1], None)
            torch.div(panel.cpu(), max(self.tokens, 1), out=whole[start:, here])
            square = whole[here, here].tril_()
            square += square.tril(-1).T
            whole[here, after] = whole[after, here].T
        return whole

    def _add_rows(self, x: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> None:
        tokens = to_float64(x[mask])
        for start, panel in self._panels.items():
            self._panels[start] = panel = panel.to(tokens.device)
            panel.addmm_(tokens[:, start:].T, tokens[:, start : start + panel.shape[1]])

    def _merge_sums(self, state: State) -> None:
        for start, panel in self._panels.items():
            panel += state["sum"][start:, start : start + panel.shape[1]].to(panel.device)

    def _sums(self) -> State:
        whole = torch.zeros(self.d_in, self.d_in, dtype=torch.float64)
        for start, panel in self._panels.items():
            whole[start:, start : start + panel.shape[1]] = panel
        return {"sum": whole}

    def _parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"sum": ((self.d_in, self.d_in), torch.float64)}


class SamplesAccumulator(Accumulator):
    """Token mean of every example, ``(k, d_in)``, in the order of the sample: OSRM's Eq. 3 at example level.

    The only statistic whose memory grows with the number of examples.
    """

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self._means: dict[int, torch.Tensor] = {}

    def finalize(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The examples' means ``(k, d_in)``, sorted by their index in the sample."""
        return self._sums()["means"].to(dtype)

    def _add_rows(self, x: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> None:
        for row, example, counted in zip(rows, x, mask, strict=True):
            if counted.any():
                self._means[row] = to_float64(example[counted]).mean(dim=0).cpu()

    def _merge_sums(self, state: State) -> None:
        self._means.update(zip(state["rows"].tolist(), state["means"], strict=True))

    def _sums(self) -> State:
        rows = sorted(self._means)
        means = [self._means[row] for row in rows]
        return {
            "rows": torch.tensor(rows, dtype=torch.int64),
            "means": torch.stack(means) if means else torch.zeros(0, self.d_in, dtype=torch.float64),
        }

    def _parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"rows": ((0,), torch.int64), "means": ((0, self.d_in), torch.float64)}
