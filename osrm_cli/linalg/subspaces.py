"""Subspaces and spectra: overlap, principal angles, Procrustes drift, orthonormal rows, polar factors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from osrm_cli.linalg.low_rank import numerical_rank


def subspace_overlap(A_1: torch.Tensor, A_2: torch.Tensor) -> float:
    """``||Q_1 Q_2^T||_F^2 / r`` of two row spaces ``(r, d)``: 1 if equal, 0 if orthogonal, about ``r/d`` if random."""
    Q_1, Q_2 = orthonormal_rows(A_1.double()), orthonormal_rows(A_2.double())
    return float((Q_1 @ Q_2.T).square().sum() / min(len(Q_1), len(Q_2)))


def principal_angles(A_1: torch.Tensor, A_2: torch.Tensor) -> torch.Tensor:
    """Angles in radians between two row spaces, the smallest first, ``(min(r_1, r_2),)``.

    From sines where the angle is small and from cosines where it is large: either alone loses half of the digits there.
    """
    Q_1, Q_2 = orthonormal_rows(A_1.double()), orthonormal_rows(A_2.double())
    if len(Q_1) < len(Q_2):
        Q_1, Q_2 = Q_2, Q_1
    cosines = torch.linalg.svdvals(Q_2 @ Q_1.T).clamp(max=1)
    sines = torch.linalg.svdvals(Q_2 - (Q_2 @ Q_1.T) @ Q_1).flip(0).clamp(max=1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of a second moment, the largest first.

    Attributes:
        values: ``(n,)``, none below zero; ``n`` may be less than ``d``, the rest are zero.
        vectors: ``(n, d)``, orthonormal rows.
    """

    values: torch.Tensor
    vectors: torch.Tensor

    @classmethod
    def of_moment(cls, C: torch.Tensor) -> Self:
        """Of ``C`` ``(d, d)``."""
        values, vectors = torch.linalg.eigh(C.double())
        return cls(values.clamp(min=0).flip(0), vectors.flip(1).T)

    @classmethod
    def of_rows(cls, rows: torch.Tensor) -> Self:
        """Of ``rows^T rows`` for ``(n, d)``: a thin SVD, whose cost does not grow with ``d^2``."""
        _, values, vectors = torch.linalg.svd(rows.double(), full_matrices=False)
        return cls(values.square(), vectors)

    def effective_rank(self) -> float:
        """Exponential of the entropy of the normalised eigenvalues: between 1 and ``n``; 0 if all are zero."""
        shares = self.values[self.values > 0] / self.values.sum()
        return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0

    def main_space(self, energy: float = 0.99) -> torch.Tensor:
        """The fewest eigenvectors that hold a share of the trace, rows ``(q, d)``."""
        shares = self.values.cumsum(0) / self.values.sum()
        # The last share is 1 but for rounding, which must not ask for one vector more than there are.
        return self.vectors[: min(1 + int((shares < energy).sum()), len(self.values))]


@dataclass(frozen=True)
class ProcrustesDrift:
    """Relative Procrustes distance of A from its start.

    Attributes:
        overall: Root of the sum of squared distances over the sum of squared norms, all layers together.
        layers: The same for each layer.
    """

    overall: float
    layers: Mapping[str, float]


def procrustes_distance(A_0: torch.Tensor, A: torch.Tensor) -> float:
    """``min ||R A_0 - A||_F`` over orthogonal ``R`` ``(r, r)``; both ``(r, d_in)``.

    The best ``R`` is the orthogonal polar factor of ``A A_0^T``.
    """
    if A.equal(A_0):  # a frozen A of full rank would take a decomposition of the layer's width
        return 0.0
    A_0, A = A_0.double(), A.double()
    U, _, Vh = torch.linalg.svd(A @ A_0.T)
    return float((U @ Vh @ A_0 - A).norm())


def relative_procrustes_distances(
    starts: Mapping[str, torch.Tensor], ends: Mapping[str, torch.Tensor]
) -> ProcrustesDrift:
    """``procrustes_distance`` over ``||A_0||_F`` for each layer, and overall.

    Args:
        starts: A of each layer before training, ``(r, d_in)``.
        ends: A of the same layers after training.
    """
    moved = {layer: procrustes_distance(A_0, ends[layer]) for layer, A_0 in starts.items()}
    norms = {layer: float(A_0.double().norm()) for layer, A_0 in starts.items()}
    return ProcrustesDrift(
        overall=_relative_procrustes_distance(math.hypot(*moved.values()), math.hypot(*norms.values())),
        layers={layer: _relative_procrustes_distance(moved[layer], norms[layer]) for layer in starts},
    )


def _relative_procrustes_distance(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def orthonormal_rows(A: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows of the same span, ``(r, d_in)``, by QR with a positive diagonal: unique, so equal everywhere."""
    Q, R = torch.linalg.qr(A.T)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)  # sign() would erase the rows of a dependent span
    rows: torch.Tensor = (Q * signs).T
    return rows.contiguous()


def orthogonal_complement(Q: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows ``(d - q, d)`` orthogonal to the orthonormal rows ``Q`` ``(q, d)``."""
    whole: torch.Tensor = torch.linalg.qr(Q.T, mode="complete").Q
    return whole[:, len(Q) :].T.contiguous()


def row_space_basis(H: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis ``(rank H, d)`` of the span of the rows of ``H`` ``(n, d)``, the principal direction first."""
    _, values, Vh = torch.linalg.svd(H, full_matrices=False)
    directions: torch.Tensor = Vh[values > values.max() * max(H.shape) * torch.finfo(H.dtype).eps]
    return directions


def polar_factor(X: torch.Tensor) -> torch.Tensor:
    """The polar factor: the nearest matrix with orthonormal columns, or the partial isometry if there is none."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    rank = numerical_rank(S)
    factor: torch.Tensor = U[:, :rank] @ Vh[:rank]
    return factor
