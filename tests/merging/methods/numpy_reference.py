"""Every rule once more, written from its formula on dense float64 arrays with NumPy: slow, plain, independent."""

import numpy as np

from tests.merging.methods.numpy_reference_more import (
    doge_ta,
    lora_lego,
    lot,
    magmax,
    multislerp,
    nearswap,
    ram,
    robust_merge,
    tatr,
)
from tests.merging.methods.numpy_sparsify import Array, bernoulli, elect, magprune, middle, top

# Rules: dense updates, their names, and the options as keywords.


def task_arith(updates: list[Array], **_: object) -> Array:
    return sum(updates)


def average(updates: list[Array], weights: list[float], **_: object) -> Array:
    return sum(updates) / sum(weights)


def svd(updates: list[Array], rank: int, moments: list[Array] | None = None, **_: object) -> Array:
    C = sum(moments) if moments else np.eye(updates[0].shape[1])
    values, vectors = np.linalg.eigh(C)
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    U, S, Vh = np.linalg.svd(sum(updates) @ root, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank] @ inverse


def ties(updates: list[Array], density: float, **_: object) -> Array:
    return elect([top(dW, density) for dW in updates])


def magnitude(updates: list[Array], density: float, **_: object) -> Array:
    return sum(top(dW, density) for dW in updates)


def breadcrumbs(updates: list[Array], density: float, outliers: float, **_: object) -> Array:
    return sum(middle(dW, density, outliers) for dW in updates)


def dare(updates: list[Array], keys: list[tuple[object, ...]], density: float, **_: object) -> Array:
    return sum(bernoulli(dW, density, *key) for dW, key in zip(updates, keys, strict=True))


def dare_ties(updates: list[Array], keys: list[tuple[object, ...]], density: float, **_: object) -> Array:
    return elect([bernoulli(dW, density, *key) for dW, key in zip(updates, keys, strict=True)])


def della(updates: list[Array], keys: list[tuple[object, ...]], density: float, window: float, **_: object) -> Array:
    return elect([magprune(dW, density, window, *key) for dW, key in zip(updates, keys, strict=True)])


def breadcrumbs_ties(updates: list[Array], density: float, outliers: float, **_: object) -> Array:
    return elect([middle(dW, density, outliers) for dW in updates])


def della_linear(
    updates: list[Array], keys: list[tuple[object, ...]], density: float, window: float, **_: object
) -> Array:
    return sum(magprune(dW, density, window, *key) for dW, key in zip(updates, keys, strict=True))


def sce(updates: list[Array], density: float, **_: object) -> Array:
    variance = np.var(np.stack(updates), axis=0)
    varied = np.sort(variance[variance > 1e-12 * variance.max()])[::-1]
    least = varied[int(density * len(varied)) - 1]
    chosen = [np.where(variance >= least, dW, 0) for dW in updates]
    coefficients = [(dW**2).sum() for dW in chosen]
    sign, merged = np.sign(sum(chosen)), np.zeros_like(variance)
    for place in np.ndindex(*merged.shape):
        rows = [(c, x[place]) for c, x in zip(coefficients, chosen, strict=True) if x[place] * sign[place] > 0]
        merged[place] = sum(c * x for c, x in rows) / sum(c for c, _ in rows) if rows else 0
    return merged


def cosine(a: Array, b: Array) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def model_stock(updates: list[Array], **_: object) -> Array:
    count = len(updates)
    c = np.mean([cosine(updates[i], updates[j]) for i in range(count) for j in range(i)])
    c = max(c, 0)
    return count * c / (1 + (count - 1) * c) * sum(updates) / count


def karcher(updates: list[Array], **_: object) -> Array:
    units = [dW / np.linalg.norm(dW) for dW in updates]
    p = sum(units) / np.linalg.norm(sum(units))
    for _ in range(2000):
        logs = []
        for u in units:
            angle = np.arccos(np.clip((p * u).sum(), -1, 1))
            logs.append(angle / np.sin(angle) * (u - np.cos(angle) * p))
        step = sum(logs) / len(logs)
        size = np.linalg.norm(step)
        if size < 1e-13:
            break
        p = np.cos(size) * p + np.sin(size) * step / size
    return np.mean([np.linalg.norm(dW) for dW in updates]) * p


def cat_merging(updates: list[Array], moments: list[Array], trim: int, penalty: float, **_: object) -> Array:
    count, bases = len(updates), []
    for k in range(count):
        M = sum(updates[i] @ (moments[k] - penalty * moments[i]) @ updates[i].T for i in range(count) if i != k)
        values, vectors = np.linalg.eigh((M + M.T) / 2)
        leading = [j for j in np.argsort(-values)[:trim] if values[j] > 1e-10 * np.abs(values).max()]
        bases.append(vectors[:, leading])
    merged = 0
    for i in range(count):
        B = np.concatenate([bases[k] for k in range(count) if k != i], axis=1)
        merged = merged + updates[i] - B @ np.linalg.pinv(B, rcond=1e-9) @ updates[i]
    return merged


def consensus(updates: list[Array], mask_scale: float, agreement: int, **_: object) -> Array:
    total = sum(updates)
    users = sum((np.abs(dW) >= mask_scale * np.abs(total - dW)).astype(int) for dW in updates)
    return np.where(users >= min(agreement, len(updates)), total, 0)


def emr(updates: list[Array], **_: object) -> tuple[Array, list[Array], list[float]]:
    sign = np.sign(sum(updates))
    unified = sign * np.max([np.where(dW * sign > 0, np.abs(dW), 0) for dW in updates], axis=0)
    masks = [dW * unified > 0 for dW in updates]
    pairs = zip(updates, masks, strict=True)
    return unified, masks, [np.abs(dW).sum() / np.abs(mask * unified).sum() for dW, mask in pairs]


def core(rule: object) -> object:
    def merged(updates: list[Array], **options: object) -> Array:
        U, left, _ = np.linalg.svd(np.concatenate(updates, axis=1), full_matrices=False)
        _, right, Vh = np.linalg.svd(np.concatenate(updates, axis=0), full_matrices=False)
        U, Vh = U[:, above(left)], Vh[above(right)]
        return U @ rule([U.T @ dW @ Vh.T for dW in updates], **options) @ Vh

    return merged


def knots(rule: object) -> object:
    def merged(updates: list[Array], **options: object) -> Array:
        U, S, Vh = np.linalg.svd(np.concatenate(updates, axis=1), full_matrices=False)
        keep = above(S)
        parts = np.split((S[:, None] * Vh)[keep], len(updates), axis=1)
        return U[:, keep] @ rule(parts, **options)

    return merged


def above(S: Array) -> Array:
    return S / S[0] > 1e-10


def triplets(W: Array, count: int | None = None) -> tuple[Array, Array, Array]:
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    keep = min(int(above(S).sum()), count or len(S))
    return U[:, :keep], S[:keep], Vh[:keep].T


def orthogonal(X: Array) -> Array:
    U, _, Vh = np.linalg.svd(X, full_matrices=False)
    return U @ Vh


def tsv(updates: list[Array], **_: object) -> Array:
    parts = [triplets(dW, max(min(dW.shape) // len(updates), 1)) for dW in updates]
    U, S, V = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return orthogonal(U) @ np.diag(S) @ orthogonal(V).T


def iso_c(updates: list[Array], **_: object) -> Array:
    U, S, V = triplets(sum(updates))
    return S.mean() * U @ V.T


def iso_cts(updates: list[Array], common: float, **_: object) -> Array:
    total = sum(updates)
    directions = min(np.linalg.matrix_rank(np.concatenate(updates, axis=axis)) for axis in (0, 1))
    own = round((directions - int(directions * common)) / len(updates))
    Uc, Sc, Vc = triplets(total, directions - own * len(updates))
    parts = [(Uc, Sc, Vc)]
    if own:
        parts += [triplets(dW - Uc @ Uc.T @ dW, own) for dW in updates]
    U, S, V = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return S.mean() * orthogonal(U) @ orthogonal(V).T


def svc(updates: list[Array], floor: float, **_: object) -> Array:
    total = sum(updates)
    U, S, V = triplets(total)
    merged = np.zeros_like(total)
    for r in range(len(S)):
        counts = [max((U[:, r] @ total) @ (U[:, r] @ dW) / ((U[:, r] @ dW) @ (U[:, r] @ dW)), floor) for dW in updates]
        merged += S[r] / np.mean(counts) * np.outer(U[:, r], V[:, r])
    return merged


def wudi(updates: list[Array], **_: object) -> Array:
    grams = [dW.T @ dW / (dW**2).sum() for dW in updates]
    return sum(dW @ G for dW, G in zip(updates, grams, strict=True)) @ np.linalg.pinv(sum(grams), rcond=1e-12)


def regmean(updates: list[Array], moments: list[Array], alpha: float, **_: object) -> Array:
    damped = [np.where(np.eye(len(C)) > 0, C, alpha * C) for C in moments]
    return sum(dW @ C for dW, C in zip(updates, damped, strict=True)) @ np.linalg.inv(sum(damped))


def sequential(
    updates: list[Array], moments: list[Array], cross: list[Array], drifts: list[Array], ridge: float, **_: object
) -> Array:
    size = len(moments[0])
    rho = ridge * np.trace(sum(moments)) / size / len(moments) * np.eye(size)
    targets = [dW @ (D + rho) + drift for dW, D, drift in zip(updates, cross, drifts, strict=True)]
    return sum(targets) @ np.linalg.inv(sum(C + rho for C in moments))


def fisher(updates: list[Array], information: list[Array], **_: object) -> Array:
    return sum(F * dW for F, dW in zip(information, updates, strict=True)) / sum(information)


def pico(rule: object) -> object:
    def merged(updates: list[Array], Bs: list[Array], **options: object) -> Array:
        U, S, _ = np.linalg.svd(np.concatenate(Bs, axis=1), full_matrices=False)
        a = 1 / (1 + (len(updates) - 1) * S**2 / (S**2).sum())
        calibrated = [dW - U @ np.diag(1 - a) @ U.T @ dW for dW in updates]
        options["weights"] = [1.0] * len(updates)
        pairs = options["factors"]
        options["factors"] = [(B - U @ np.diag(1 - a) @ U.T @ B, A) for B, A in pairs]
        result = rule(calibrated, **options)
        return result * np.mean([np.linalg.norm(dW) for dW in updates]) / (np.linalg.norm(result) or 1)

    return merged


PLAIN = {
    **dict.fromkeys(
        ("task-arith", "cat", "core-task-arith", "adamerging", "frank-wolfe", "matched-weights", "distill"), task_arith
    ),
    "average": average,
    "model-stock": model_stock,
    "karcher": karcher,
    "multislerp": multislerp,
    "ram": ram,
    "core-ram": core(ram),
    "tatr": tatr,
    "core-tatr": core(tatr),
    "magmax": magmax,
    "core-magmax": core(magmax),
    "nearswap": nearswap,
    "robust-merge": robust_merge,
    "lora-lego": lora_lego,
    "lot": lot,
    "doge-ta": doge_ta,
    "cat-merging": cat_merging,
    "breadcrumbs-ties": breadcrumbs_ties,
    "della-linear": della_linear,
    "sce": sce,
    "core-breadcrumbs-ties": core(breadcrumbs_ties),
    "core-della-linear": core(della_linear),
    "core-sce": core(sce),
    "svd": svd,
    "ties": ties,
    "magnitude": magnitude,
    "breadcrumbs": breadcrumbs,
    "dare": dare,
    "dare-ties": dare_ties,
    "della": della,
    "consensus": consensus,
    "core-ties": core(ties),
    "core-magnitude": core(magnitude),
    "core-breadcrumbs": core(breadcrumbs),
    "core-dare": core(dare),
    "core-dare-ties": core(dare_ties),
    "core-della": core(della),
    "core-consensus": core(consensus),
    "knots-ties": knots(ties),
    "knots-dare-ties": knots(dare_ties),
    "tsv": tsv,
    "iso-c": iso_c,
    "iso-cts": iso_cts,
    "svc": svc,
    "pico": pico(task_arith),
    "wudi": wudi,
    "regmean": regmean,
    "regmean++": regmean,
    "sequential": sequential,
    "fisher": fisher,
}
RULES = {**PLAIN, **{f"pico+{name}": pico(rule) for name, rule in PLAIN.items() if name != "pico"}}
