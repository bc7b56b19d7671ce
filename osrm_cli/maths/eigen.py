"""The few eigenvectors of a symmetric matrix that are wanted, not all of them."""

import torch


def smallest(S: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Orthonormal eigenvectors of the ``r`` smallest eigenvalues, as rows ``(r, d)``, the smallest first.

    Args:
        S: Symmetric positive semi-definite, ``(d, d)``, float64.
        start: Seeded Gaussian rows ``(r, d)``.
    """
    vectors: torch.Tensor = torch.linalg.eigh(S).eigenvectors
    return vectors[:, : start.shape[0]].T


def largest(S: torch.Tensor, rank: int) -> torch.Tensor:
    """Orthonormal eigenvectors of the ``rank`` largest eigenvalues, as rows ``(rank, d)``, the largest first."""
    vectors: torch.Tensor = torch.linalg.eigh(S).eigenvectors
    return vectors[:, len(S) - rank :].flip(1).T


def signed(A: torch.Tensor) -> torch.Tensor:
    """Rows with their sign chosen so that the entry of largest magnitude is positive."""
    peaks = A.gather(1, A.abs().argmax(dim=1, keepdim=True))
    return A * torch.where(peaks < 0, -1.0, 1.0).to(A.dtype)
