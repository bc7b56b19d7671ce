"""Systems of equations whose matrix, a sum of second moments, may be singular."""

from torch import Tensor, eye, linalg

# Second moments are stored in float32: what is smaller than this share of the largest is rounding, not data.
KNOWN = 1e-7
RIDGES = (0.0, 1e-6, 1e-5)  # tried in turn, in units of the mean diagonal


def cholesky(C: Tensor) -> tuple[Tensor, float]:
    """The Cholesky factor of ``C + ridge I`` and the ridge, the first of ``RIDGES`` that is well enough conditioned.

    That is one whose smallest pivot is above ``KNOWN`` of its largest.
    """
    scale = float(C.diagonal().mean()) or 1.0
    identity = eye(len(C), dtype=C.dtype, device=C.device)
    for relative in RIDGES:
        factor, failed = linalg.cholesky_ex(C + relative * scale * identity)
        pivots = factor.diagonal().square()
        if not failed and pivots.min() >= KNOWN * pivots.max():
            break
    return factor, relative * scale
