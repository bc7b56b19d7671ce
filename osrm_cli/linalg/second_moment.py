"""Second moments ``C`` of a layer's inputs, whole or as rows whose Gram matrix is ``C``.

A sketch, or a few examples' means, are rows; at width 4096 they save the ``(d_in, d_in)`` matrix.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, eye, linalg

from osrm_cli.errors import OsrmError
from osrm_cli.linalg import interference
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.subspaces import Spectrum


@dataclass(frozen=True)
class SecondMoment:
    """``C``, whole or as a factor.

    Attributes:
        matrix: ``(d, d)``, or rows ``(n, d)`` with ``C = rows^T rows``.
        factored: Whether it is rows.
    """

    matrix: torch.Tensor
    factored: bool

    @property
    def trace(self) -> float:
        """``E ||x||^2``."""
        return float(self.matrix.square().sum() if self.factored else self.matrix.trace())

    @property
    def row_count(self) -> int | None:
        """Rows, which bound the rank of ``C``; ``None`` if it is whole."""
        return len(self.matrix) if self.factored else None

    def dense(self) -> torch.Tensor:
        """``C`` ``(d, d)``."""
        return self.matrix.T @ self.matrix if self.factored else self.matrix

    def to(self, like: torch.Tensor | torch.dtype) -> "SecondMoment":
        """The same in another precision, or in a tensor's, where that lies."""
        return SecondMoment(self.matrix.to(like), self.factored)

    def times(self, X: torch.Tensor) -> torch.Tensor:
        """``X C`` for X ``(n, d)``."""
        return X @ self.matrix.T @ self.matrix if self.factored else X @ self.matrix

    def energy_shares(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the trace that each row of A ``(r, d)`` captures, ``a C a^T / tr C``, ``(r,)``, in A's precision."""
        matrix = self.matrix.to(A.dtype)
        if self.factored:
            captured, total = (A @ matrix.T).square().sum(dim=1), matrix.square().sum()
        else:
            captured, total = ((A @ matrix) * A).sum(dim=1), matrix.trace()
        return captured / total if total > 0 else torch.zeros_like(captured)

    def energy(self, update: LowRank) -> torch.Tensor:
        """``E ||B A x||^2`` in the precision of ``C``, a scalar, differentiable: see ``interference.energy``."""
        measure = interference.delta_energy_of_rows if self.factored else interference.delta_energy
        return measure(update.to(self.matrix.dtype), self.matrix)

    def base_energy(self, W: torch.Tensor) -> float:
        """``E ||W x||^2`` for W ``(d_out, d)``."""
        W = W.to(self.matrix)
        return float(
            (W @ self.matrix.T).square().sum() if self.factored else interference.weight_energy(W, self.matrix)
        )

    def spectrum(self) -> Spectrum:
        """Eigenvalues and eigenvectors of ``C``."""
        return Spectrum.of_rows(self.matrix) if self.factored else Spectrum.of_moment(self.matrix)

    def share(self, Q: torch.Tensor) -> float:
        """Share of the trace in the span of orthonormal ``Q`` ``(q, d)``; 0 for inputs that are all zero."""
        seen = Q @ self.matrix.T
        caught = float(seen.square().sum() if self.factored else (seen * Q).sum())
        return min(caught / self.trace, 1.0) if self.trace > 0 else 0.0


# Second moments are stored in float32: what is smaller than this share of the largest is rounding, not data.
KNOWN_RATIO = 1e-7


RIDGES = (0.0, 1e-6, 1e-5)  # tried in turn, in units of the mean diagonal


def ridge_cholesky(C: Tensor) -> tuple[Tensor, float]:
    """The Cholesky factor of ``C + ridge I`` and the ridge, the first of ``RIDGES`` that is well enough conditioned.

    That is one whose smallest pivot is above ``KNOWN`` of its largest.
    """
    scale = float(C.diagonal().mean()) or 1.0
    identity = eye(len(C), dtype=C.dtype, device=C.device)
    for relative in RIDGES:
        factor, failed = linalg.cholesky_ex(C + relative * scale * identity)
        pivots = factor.diagonal().square()
        if not failed and pivots.min() >= KNOWN_RATIO * pivots.max():
            break
    return factor, relative * scale


def stack_moment_rows(blocks: Sequence[torch.Tensor], balanced: bool) -> torch.Tensor:
    """The other tasks' means ``(d,)``, samples or sketches ``(n, d)`` as one ``H`` ``(sum n, d)``.

    Args:
        blocks: One tensor for each other task.
        balanced: Give every task the same weight, ``tr = 1``, as in ``C_out``; else as they come, as in Eq. 3.
    """
    rows = [block.reshape(-1, block.shape[-1]).to(torch.float64) for block in blocks]
    return torch.cat([row / _nonzero_moment_scale(row.norm()) for row in rows] if balanced else rows)


def total_moment(moments: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum over all tasks of second moments ``(d, d)``, each divided by its trace."""
    total: torch.Tensor | None = None
    for moment in moments:
        part = moment.to(torch.float64) / _nonzero_moment_scale(moment.trace())
        total = part if total is None else total.add_(part)
    if total is None:
        raise OsrmError("there are no second moments to add up")
    return total


def others_moment(total: torch.Tensor, own: torch.Tensor, tasks: int) -> torch.Tensor:
    """``C_out`` of one task, ``(d, d)``: the total minus its own, so that all tasks together cost one pass.

    Args:
        total: ``total_moment`` of all tasks, the own one among them.
        own: The task's own second moment.
        tasks: Number of tasks in the total.

    Raises:
        OsrmError: If there is no other task.
    """
    if tasks < 2:
        raise OsrmError("there is only one task's second moment, expected at least one other task")
    return (total - own.to(torch.float64) / _nonzero_moment_scale(own.trace())) / (tasks - 1)


def _nonzero_moment_scale(value: torch.Tensor) -> torch.Tensor:
    """The divisor, or one where it is zero: inputs that are all zero stay zero."""
    return torch.where(value > 0, value, torch.ones_like(value)).to(torch.float64)


def to_float64(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float64, on the CPU if its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)
