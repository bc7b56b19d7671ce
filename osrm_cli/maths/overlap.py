"""How far two subspaces, or two tasks' features, share their directions."""

import torch

from osrm_cli.maths.baselines import orthonormal_rows


def overlap(A_1: torch.Tensor, A_2: torch.Tensor) -> float:
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


def effective_rank(C: torch.Tensor) -> float:
    """Exponential of the entropy of the normalised eigenvalues of ``C`` ``(d, d)``: between 1 and ``d``."""
    values = torch.linalg.eigvalsh(C.double()).clamp(min=0)
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def main_space(C: torch.Tensor, energy: float = 0.99) -> torch.Tensor:
    """The fewest eigenvectors of ``C`` ``(d, d)`` that hold a share of its trace, rows ``(q, d)``, main ones first."""
    values, vectors = torch.linalg.eigh(C.double())
    shares = values.clamp(min=0).flip(0).cumsum(0) / values.clamp(min=0).sum()
    count = 1 + int((shares < energy).sum())
    rows: torch.Tensor = vectors.flip(1)[:, :count].T
    return rows


def energy_share(C: torch.Tensor, rows: torch.Tensor) -> float:
    """Share of the trace of ``C`` ``(d, d)`` that lies in the span of orthonormal ``rows`` ``(q, d)``."""
    C = C.to(rows.dtype)
    return float(((rows @ C) * rows).sum() / C.trace())
