"""Further rules from their formulas on dense float64 arrays with NumPy: of mergekit, of FusionBench, on factors."""

import numpy as np

from tests.merging.methods.numpy_sparsify import Array, top


def multislerp(updates: list[Array], **_: object) -> Array:
    """With the step in the tangent space that mergekit takes, and that the rule leaves out."""
    norms = [np.linalg.norm(dW) for dW in updates]
    units = [dW / norm for dW, norm in zip(updates, norms, strict=True)]
    p = np.mean(units, axis=0) / np.linalg.norm(np.mean(units, axis=0))
    step = np.mean([u - (u * p).sum() * p for u in units], axis=0)
    size = np.linalg.norm(step) + 1e-8
    return np.mean(norms) * (np.cos(size) * p + np.sin(size) * step / size)


def ram(updates: list[Array], epsilon: float, bonus: float, **_: object) -> Array:
    used = [np.abs(dW) > epsilon for dW in updates]
    users = np.sum(used, axis=0)
    merged = np.zeros(updates[0].shape)
    for dW, mine in zip(updates, used, strict=True):
        own, shared = int((mine & (users == 1)).sum()), int((mine & (users > 1)).sum())
        growth = 1 + bonus * min(shared / own, 0.2) if own else 1
        merged += np.where(users == 1, growth, 1 / np.maximum(users, 1)) * np.where(mine, dW, 0)
    return merged


def tatr(updates: list[Array], outliers: float, **_: object) -> Array:
    count = len(updates)
    conflict = sum(np.abs(updates[s] * updates[t]) for s in range(count) for t in range(count) if s != t)
    return np.where(top(conflict, outliers) > 0, 0, sum(updates))


def magmax(updates: list[Array], **_: object) -> Array:
    stacked = np.stack(updates)
    return np.take_along_axis(stacked, np.abs(stacked).argmax(0)[None], 0)[0]


def nearswap(updates: list[Array], reach: float, **_: object) -> Array:
    """As mergekit has it: the weight of the other model falls with the distance."""
    a, b = updates
    weight = np.clip(reach / np.maximum(np.abs(a - b), 1e-300), 0, 1)
    return weight * b + (1 - weight) * a


def robust_merge(updates: list[Array], factors: list[tuple[Array, Array]], density: float, **_: object) -> Array:
    size = max(A.shape[0] for _, A in factors)
    A_merged, numerator = np.zeros((size, updates[0].shape[1])), np.zeros((updates[0].shape[0], size))
    denominator = np.zeros(size)
    for B, A in factors:
        trimmed_B, trimmed_A = top(B, density), top(A, density)
        alive = [k for k in range(len(A)) if np.abs(trimmed_A[k]).sum() > 0 and np.abs(B[:, k]).sum() > 0]
        scale = {k: np.abs(A[k]).sum() / np.abs(trimmed_A[k]).sum() for k in alive}
        least = sorted(scale.values())[int(0.8 * len(alive))] if alive else 0
        for k in alive:
            s = max(scale[k], least)
            A_merged[k] += trimmed_A[k]
            numerator[:, k] += s * trimmed_B[:, k]
            denominator[k] += s
    return numerator / np.where(denominator > 0, denominator, 1) @ A_merged


def lora_lego(updates: list[Array], factors: list[tuple[Array, Array]], rank: int, **_: object) -> Array:
    units = np.array([np.concatenate([A[k], B[:, k]]) for B, A in factors for k in range(len(A))])
    rank = min(rank, len(units))
    centres = [max(units, key=lambda u: (u**2).sum())]
    while len(centres) < rank:
        centres.append(max(units, key=lambda u: min(((u - c) ** 2).sum() for c in centres)))
    owners: list[int] = []
    while True:
        nearest = [int(np.argmin([((u - c) ** 2).sum() for c in centres])) for u in units]
        if nearest == owners:
            break
        owners = nearest
        members = [units[[owner == k for owner in owners]] for k in range(rank)]
        centres = [part.mean(0) if len(part) else np.full(units.shape[1], np.inf) for part in members]
    d_in, merged, kept = updates[0].shape[1], 0, [part for part in members if len(part)]
    for part in kept:
        mean = part.mean(0)
        mean = mean * np.linalg.norm(part, axis=1).mean() / np.linalg.norm(mean)
        merged = merged + np.outer(mean[d_in:], mean[:d_in])
    return np.sqrt(np.mean([len(A) for _, A in factors if len(A)]) / len(kept)) * merged


def doge_ta(updates: list[Array], density: float, **_: object) -> Array:
    d_out, d_in = updates[0].shape
    norms = [np.linalg.norm(dW) for dW in updates]
    shares = [np.mean(norms) / norm for norm in norms]
    leading = []
    for dW in updates:
        U, S, _ = np.linalg.svd(dW)
        leading.append(U[:, : min(int((1e-10 * S[0] < S).sum()), max(min(d_out, d_in) // len(updates), 1))])
    joined = np.concatenate(leading, axis=1)
    U = np.linalg.svd(joined)[0][:, : joined.shape[1] // 6]
    # One equation for each task and row, one unknown for each entry of the correction before its projection.
    projection = np.kron(np.eye(d_out) - U @ U.T, np.eye(d_in))
    equations, right = [], []
    for dW in updates:
        short = dW - sum(share * other for share, other in zip(shares, updates, strict=True))
        for i in range(d_out):
            equation = np.zeros((d_out, d_in))
            equation[i] = sum(shares) * dW[i]
            equations.append(equation.ravel() @ projection)
            right.append(dW[i] @ short[i])
    solution = np.linalg.lstsq(np.array(equations), np.array(right), rcond=1e-12)[0]
    D = (projection @ solution).reshape(d_out, d_in)
    return sum(share * np.where(top(dW, density) != 0, dW + D, 0) for share, dW in zip(shares, updates, strict=True))


def lot(updates: list[Array], moments: list[Array], **_: object) -> Array:
    return sum(dW @ C for dW, C in zip(updates, moments, strict=True)) @ np.linalg.pinv(sum(moments), rcond=1e-7)
