"""A few eigenvectors of a symmetric matrix, from either end of its spectrum.

Block Krylov iteration with full reorthogonalization. Each result is checked by its residual; what does not converge is
solved densely.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

DENSE = 640  # up to this width a dense eigh is as fast
NULL_THRESHOLDS = (
    1e-10,
    1e-8,
    1e-6,
)  # of the mean eigenvalue: less counts as zero; float32 storage needs the larger ones
RESIDUAL = 1e-5  # relative; the eigenvalue's own error is about its square over the gap
SHIFT_TOLERANCE = 1e-2  # the same, sufficient to move the shift
OVERSAMPLED = 8
BLOCKS = 32
CHECK = 4
PANEL = 256  # columns

Operator = Callable[[torch.Tensor], torch.Tensor]


def smallest_eigenvectors(S: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Orthonormal eigenvectors of the ``r`` smallest eigenvalues, as rows ``(r, d)``, the smallest first.

    Inverse iteration through Cholesky. The eigenvalues at the small end lie close together, so once they are roughly
    known the shift moves up to just below them; that the factorisation succeeds proves that it is below.

    If the null space has at least ``r`` dimensions, the rows are the start's projection onto it instead: a basis that
    the seed draws, not one that LAPACK happens to return.

    Args:
        S: Symmetric positive semi-definite, ``(d, d)``, float64.
        start: Seeded Gaussian rows ``(r, d)``.
    """
    rank = len(start)
    first = (
        _factor_shifted_matrix(S, [-null * float(S.trace()) / len(S) for null in NULL_THRESHOLDS])
        if len(S) > DENSE
        else None
    )
    if first is None:
        return _dense_smallest_eigenvectors(S, start)
    solve, shift = first
    null = _orthonormal_basis(solve(_orthonormal_basis(solve(start.T))))
    if float(_rayleigh_quotients(S, null).max()) <= -shift:
        return null.T
    columns = _oversample_start(start)
    for tolerance in (SHIFT_TOLERANCE, RESIDUAL, RESIDUAL):
        pairs = block_krylov_eigenvectors(solve, columns, rank, tolerance)
        if pairs.residual <= RESIDUAL:
            return pairs.vectors[:, :rank].T
        columns, values = pairs.vectors, _rayleigh_quotients(S, pairs.vectors)[:rank]
        low, spread = float(values.min()), float(values.max() - values.min())
        below = [low - spread * 2.0**k for k in range(3)]
        solve, shift = _factor_shifted_matrix(S, [nearer for nearer in below if nearer > shift]) or (solve, shift)
    return _dense_smallest_eigenvectors(S, start)


def largest_eigenvectors(apply: Operator, start: torch.Tensor) -> torch.Tensor:
    """Orthonormal eigenvectors of the ``r`` largest eigenvalues, as rows ``(r, d)``, the largest first.

    Args:
        apply: Product of a symmetric positive semi-definite operator with columns ``(d, b)``.
        start: Seeded Gaussian rows ``(r, d)``.
    """
    rank, width = start.shape
    if width > DENSE:
        pairs = block_krylov_eigenvectors(apply, _oversample_start(start), rank, RESIDUAL)
        if pairs.residual <= RESIDUAL:
            return pairs.vectors[:, :rank].T
    S = apply(torch.eye(width, dtype=start.dtype, device=start.device))
    vectors: torch.Tensor = torch.linalg.eigh((S + S.T) / 2).eigenvectors
    return vectors[:, width - rank :].flip(1).T


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenvectors.

    Attributes:
        vectors: ``(d, b)``, as many as the block has columns, that of the largest value first.
        residual: The largest among those that must converge, relative to its value.
    """

    vectors: torch.Tensor
    residual: float


def block_krylov_eigenvectors(apply: Operator, start: torch.Tensor, rank: int, tolerance: float) -> RitzPairs:
    """Eigenvectors of the largest eigenvalues by block Krylov iteration, every block orthogonal to all before.

    Args:
        apply: Product of a symmetric positive semi-definite operator with columns ``(d, b)``.
        start: First block ``(d, b)``, ``b >= rank``.
        rank: Number of eigenvectors that must converge.
        tolerance: Largest residual allowed.
    """
    width = start.shape[1]
    blocks = min(BLOCKS, len(start) // width)  # at least one: a block is never wider than the space
    V, W = (start.new_empty(len(start), blocks * width) for _ in range(2))
    block = _orthonormal_basis(start)
    for step in range(1, blocks + 1):
        columns = slice((step - 1) * width, step * width)
        V[:, columns], W[:, columns] = block, apply(block)
        basis, images = V[:, : columns.stop], W[:, : columns.stop]
        if step % CHECK == 0 or step == blocks:
            pairs = _ritz_pairs(basis, images, rank, width)
            if pairs.residual <= tolerance:
                break
        block = _orthonormal_basis(_project_outside(_orthonormal_basis(_project_outside(W[:, columns], basis)), basis))
    return pairs


def _ritz_pairs(basis: torch.Tensor, images: torch.Tensor, rank: int, width: int) -> RitzPairs:
    """The best approximations in the span of ``basis`` ``(d, k)``, whose images under the operator are known."""
    values, mix = torch.linalg.eigh(basis.T @ images)
    values, mix = values[-width:].flip(0), mix[:, -width:].flip(1)
    vectors = basis @ mix
    limits = torch.finfo(values.dtype)
    residual = (images @ mix - vectors * values).norm(dim=0) - limits.eps * values[0]  # less is rounding
    relative = residual.clamp_min(0) / values.clamp_min(limits.tiny)
    return RitzPairs(_orthonormal_basis(vectors), float(relative[:rank].max()))


def fix_eigenvector_signs(A: torch.Tensor) -> torch.Tensor:
    """Rows with their sign chosen so that the entry of largest magnitude is positive."""
    peaks = A.gather(1, A.abs().argmax(dim=1, keepdim=True))
    return A * torch.where(peaks < 0, -1.0, 1.0).to(A.dtype)


def _factor_shifted_matrix(S: torch.Tensor, shifts: Iterable[float]) -> tuple[Operator, float] | None:
    """Solver with ``S - shift I`` for the first shift that leaves it positive definite, and that shift."""
    for shift in shifts:
        factor = _shifted_cholesky(S, shift)
        if factor is not None:
            return partial(_cholesky_solve, factor), shift
    return None


def _shifted_cholesky(S: torch.Tensor, shift: float) -> torch.Tensor | None:
    """Factor of ``S - shift I``, panel by panel: nearly all of it is matrix products, at twice LAPACK's speed.

    ``None`` if it is not positive definite.
    """
    L = torch.zeros_like(S)
    for start in range(0, len(S), PANEL):
        panel, rest = slice(start, start + PANEL), slice(start + PANEL, len(S))
        left = S[start:, panel] - L[start:, :start] @ L[panel, :start].T
        left.diagonal().sub_(shift)
        corner, failed = torch.linalg.cholesky_ex(left[:PANEL])
        if failed:
            return None
        L[panel, panel] = corner
        L[rest, panel] = torch.linalg.solve_triangular(corner.T, left[PANEL:], upper=True, left=False)
    return L


def _cholesky_solve(L: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``(L L^T)^{-1}`` times columns; ``torch.cholesky_solve`` copies the factor and takes four times as long."""
    half = torch.linalg.solve_triangular(L, columns, upper=False)
    whole: torch.Tensor = torch.linalg.solve_triangular(L.T, half, upper=True)
    return whole


def _rayleigh_quotients(S: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return ((S @ columns) * columns).sum(dim=0)


def _dense_smallest_eigenvectors(S: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(S)
    null = int((values <= NULL_THRESHOLDS[0] * values.mean()).sum())
    lowest: torch.Tensor = vectors[:, : max(null, len(start))]
    return lowest.T if null < len(start) else _orthonormal_basis(lowest @ (lowest.T @ start.T)).T


def _project_outside(block: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    return block - V @ (V.T @ block)


def _orthonormal_basis(columns: torch.Tensor) -> torch.Tensor:
    Q: torch.Tensor = torch.linalg.qr(columns)[0]
    return Q


def _oversample_start(start: torch.Tensor) -> torch.Tensor:
    """The start's rows as columns, and a few more that depend on them alone."""
    return torch.cat([start, start[:OVERSAMPLED].roll(1, dims=1)])[: start.shape[1]].T
