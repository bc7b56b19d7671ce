"""Frequent Directions: a small matrix that stands for a large second moment."""

from collections.abc import Sequence

import torch

from osrm_cli.features.statistics.accumulators import Accumulator, State
from osrm_cli.linalg.second_moment import to_float64


class FrequentDirections(Accumulator):
    """Sketch ``S`` ``(m, d_in)`` of the tokens ``X`` with ``0 <= X^T X - S^T S <= error I`` (arXiv:1501.01711).

    For every ``k < m``, ``error <= ||X - X_k||_F^2 / (m - k)``, where ``X_k`` is the best approximation of rank ``k``.
    Tokens are buffered below the sketch. When ``4 m`` rows are full, all squared singular values are lowered by the
    ``m + 1``-st, which leaves ``m`` rows: where that happens depends on the order of the tokens, not on the batches.
    Sketches merge by sketching their stacked rows; the bound holds for the whole.

    Args:
        d_in: Width of the inputs.
        size: Rows of the sketch, ``m``.

    Attributes:
        error: What the sketch may lack in any direction: the sum of all lowerings so far, never above the bound.
        energy: ``||X||_F^2``, the measure for it.
    """

    def __init__(self, d_in: int, size: int) -> None:
        super().__init__(d_in)
        self.size = size
        self.error = 0.0
        self.energy = 0.0
        self._buffer = torch.zeros(0, d_in, dtype=torch.float64)

    def finalize(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """``S`` ``(m, d_in)``, with rows of zeros if the tokens' rank is below ``m``."""
        self._shrink()
        missing = self._buffer.new_zeros(self.size - self._buffer.shape[0], self.d_in)
        return torch.cat([self._buffer, missing]).cpu().to(dtype)

    def error_bound(self) -> dict[str, float]:
        """``X^T X - S^T S <= error I``, and ``energy`` to measure it by."""
        return {"error": self.error, "energy": self.energy}

    def _add_rows(self, x: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> None:
        # Blocks of a few m keep the memory flat; each costs one thin SVD.
        tokens = to_float64(x[mask])
        self.energy += float(tokens.square().sum())
        while len(tokens):
            room = 4 * self.size - len(self._buffer)
            self._buffer = torch.cat([self._buffer.to(tokens.device), tokens[:room]])
            tokens = tokens[room:]
            if len(self._buffer) == 4 * self.size:
                self._shrink()

    def _shrink(self) -> None:
        if self._buffer.shape[0] <= self.size:
            return
        _, values, directions = torch.linalg.svd(self._buffer, full_matrices=False)
        lowered = values[self.size].square() if len(values) > self.size else values.new_zeros(())
        shrunk = (values[: self.size].square() - lowered).clamp(min=0).sqrt()
        self._buffer = shrunk[:, None] * directions[: self.size]
        self.error += float(lowered)

    def _merge_sums(self, state: State) -> None:
        self._buffer = torch.cat([self._buffer, state["rows"].to(self._buffer.device)])
        self.error += float(state["error"])
        self.energy += float(state["energy"])
        if len(self._buffer) >= 4 * self.size:
            self._shrink()

    def _sums(self) -> State:
        return {
            "error": torch.tensor(self.error, dtype=torch.float64),
            "energy": torch.tensor(self.energy, dtype=torch.float64),
            "rows": self._buffer.cpu(),
        }

    def _parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        number = (), torch.float64
        return {"error": number, "energy": number, "rows": ((0, self.d_in), torch.float64)}
