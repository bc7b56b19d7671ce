"""What is known of a layer's inputs: their second moment ``C``, or rows whose Gram matrix stands for it.

A sketch, or a few examples' means, are rows; at width 4096 they spare the ``(d_in, d_in)`` matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.osrm import others_moment, stack_rows, total_moment
from osrm_cli.linalg import interference
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.subspaces import Spectrum


@dataclass(frozen=True)
class Gram:
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

    def dense(self) -> torch.Tensor:
        """``C`` ``(d, d)``."""
        return self.matrix.T @ self.matrix if self.factored else self.matrix

    def to(self, like: torch.Tensor) -> "Gram":
        """The same in another tensor's precision, where that lies."""
        return Gram(self.matrix.to(like), self.factored)

    def times(self, X: torch.Tensor) -> torch.Tensor:
        """``X C`` for X ``(n, d)``."""
        return X @ self.matrix.T @ self.matrix if self.factored else X @ self.matrix

    def energy(self, update: LowRank) -> torch.Tensor:
        """``E ||B A x||^2`` in the precision of ``C``, a scalar, differentiable: see ``interference.energy``."""
        measure = interference.energy_of_rows if self.factored else interference.energy
        return measure(update.to(self.matrix.dtype), self.matrix)

    def base_energy(self, W: torch.Tensor) -> float:
        """``E ||W x||^2`` for W ``(d_out, d)``."""
        W = W.to(self.matrix)
        return float((W @ self.matrix.T).square().sum() if self.factored else interference.base_energy(W, self.matrix))

    def spectrum(self) -> Spectrum:
        """Eigenvalues and eigenvectors of ``C``."""
        return Spectrum.of_rows(self.matrix) if self.factored else Spectrum.of_moment(self.matrix)

    def share(self, Q: torch.Tensor) -> float:
        """Share of the trace in the span of orthonormal ``Q`` ``(q, d)``; 0 for inputs that are all zero."""
        seen = Q @ self.matrix.T
        caught = float(seen.square().sum() if self.factored else (seen * Q).sum())
        return min(caught / self.trace, 1.0) if self.trace > 0 else 0.0


def others(grams: Sequence[Gram], own: int) -> Gram:
    """``C_out``: the average of all tasks' C but one's, each divided by its trace.

    Args:
        grams: One per task, all of one kind.
        own: Index of the task that is left out.

    Raises:
        OsrmError: If there is no other task.
    """
    if len(grams) < 2:
        raise OsrmError("there is only one task's second moment, expected at least one other task")
    if grams[own].factored:
        rows = stack_rows([gram.matrix for index, gram in enumerate(grams) if index != own], balanced=True)
        return Gram(rows / (len(grams) - 1) ** 0.5, factored=True)
    total = total_moment(gram.matrix for gram in grams)
    return Gram(others_moment(total, grams[own].matrix, len(grams)), factored=False)
