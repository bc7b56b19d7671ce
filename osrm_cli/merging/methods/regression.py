"""Rules that solve a least-squares problem, with data or with the updates as their own data."""

import torch
from torch import Tensor

from osrm_cli.errors import OsrmError
from osrm_cli.linalg import second_moment
from osrm_cli.linalg.low_rank import LowRank, numerical_rank, stack_factors
from osrm_cli.linalg.row_stream import RowStream, Update, add_up_matrices
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions


def regmean(layer: LayerUpdates, options: MethodOptions) -> Update:
    """RegMean on the updates (arXiv:2212.09849): ``lambda * (sum_t w_t dW_t C_t) (sum_t C_t)^{-1}``.

    Minimises ``sum_t E_{x ~ t} ||(X - w_t dW_t) x||^2``. Off-diagonal entries of each ``C_t`` are scaled by ``alpha``.
    Solved by Cholesky in float64 on the factors ``A_t``, so the result keeps rank ``sum r_t``; on the rows of full
    models. Where the sum
    is singular, as far as moments stored in float32 can tell, a small ridge is shared among the ``C_t``: directions
    without data then take the plain average. One adapter is itself; linear in the weights.

    Raises:
        OsrmError: If there are no second moments.
    """
    if layer.second_moments is None:
        raise OsrmError(
            f"regmean needs second moments of {layer.name}'s inputs, none were given",
            "osrm collect --statistic second-moment",
        )
    moments = [_damp_correlations(C.to(torch.float64), options.alpha) for C in layer.second_moments]
    factor, added = second_moment.ridge_cholesky(sum(moments[1:], start=moments[0]))
    ridge = added / len(moments)
    pairs = zip(layer.updates, moments, strict=True)
    return add_up_matrices([_regmean_term(update, C, ridge, factor) for update, C in pairs]).scaled(options.scale)


def lot(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """LOT Merging (arXiv:2505.23859) of linear layers: ``lambda * (sum_t w_t dW_t C_t) (sum_t C_t)^+``.

    The update of least norm among those of least ``sum_t E ||(X - w_t dW_t) x_t*||^2``, ``C_t = E[x_t* x_t*^T]`` of the
    single model's own inputs. RegMean reads the base model's, damps their off-diagonal entries, and takes the plain
    average in directions without data, where this is zero. Exact as an adapter. One adapter is itself on what its
    inputs span. Linear in the weights.

    Raises:
        OsrmError: If there are no second moments.
    """
    if layer.second_moments is None:
        raise OsrmError(f"lot needs second moments of {layer.name}'s inputs in the single models, none were given")
    moments = [C.to(torch.float64) for C in layer.second_moments]
    values, vectors = torch.linalg.eigh(torch.stack(moments).sum(0))
    seen = values > second_moment.KNOWN_RATIO * values[-1]
    inverse = (vectors[:, seen] / values[seen]) @ vectors[:, seen].T
    updates = [update.to(torch.float64) for update in layer.weighted]
    pairs = zip(updates, moments, strict=True)
    return stack_factors([LowRank(update.B, update.A @ C @ inverse) for update, C in pairs]).scaled(options.scale)


def _regmean_term(update: Update, C: Tensor, ridge: float, factor: Tensor) -> Update:
    """``dW (C + ridge I) (L L^T)^{-1}`` for ``factor`` ``L``, in float64."""

    def solve(rows: Tensor) -> Tensor:
        return torch.cholesky_solve((rows @ C + ridge * rows).T, factor).T

    exact = update.to(torch.float64)
    return LowRank(exact.B, solve(exact.A)) if isinstance(exact, LowRank) else exact.then(lambda _, rows: solve(rows))


def sequential(layer: LayerUpdates, options: MethodOptions) -> RowStream:
    """Least squares on the single models' outputs: each layer corrects the errors of the merged layers below it.

    ``min_X sum_t E ||(W_0 + X) x_t - (W_0 + w_t dW_t) x_t*||^2 + sum_t rho ||X - w_t dW_t||_F^2``; ``x_t`` are the
    layer's inputs in the model merged so far, ``x_t*`` those of the same tokens in the single model. With
    ``C_t = E[x_t x_t^T]`` and ``D_t = E[x_t* x_t^T]``, the result is ``lambda`` times
    ``(sum_t w_t dW_t (D_t + rho I) + W_0 (D_t - C_t)) (sum_t C_t + rho I)^{-1}``; ``rho`` is ``ridge`` times the mean
    diagonal entry of the ``C_t``. At a rank it is the reduced-rank regression, since it is cut in the norm of the
    inputs; the layers above then correct that error too. RegMean++ takes the targets at ``x_t``, so ``D_t = C_t``. One
    adapter is itself.

    Raises:
        OsrmError: If there are no such moments.
    """
    if layer.second_moments is None or layer.cross_moments is None or layer.drifts is None:
        raise OsrmError(
            f"sequential needs moments of {layer.name}'s inputs in merged and single models, none were given"
        )
    total = torch.stack([C.to(torch.float64) for C in layer.second_moments]).sum(0)
    share = options.ridge * float(total.diagonal().mean()) / len(layer.deltas)
    identity = torch.eye(len(total), dtype=total.dtype, device=total.device)
    factor, added = second_moment.ridge_cholesky(total + share * len(layer.deltas) * identity)
    share += added / len(layer.deltas)
    targets = torch.zeros(layer.shape, dtype=total.dtype, device=total.device)
    for update, D, drift in zip(layer.weighted, layer.cross_moments, layer.drifts, strict=True):
        exact = update.to(torch.float64)
        targets += exact.B @ (exact.A @ D.to(torch.float64) + share * exact.A) + drift.to(torch.float64)
    return RowStream.of(options.scale * torch.cholesky_solve(targets.T, factor).T)


def wudi(layer: LayerUpdates, options: MethodOptions) -> LowRank:
    """WUDI (arXiv:2503.08099) in closed form: ``min_X sum_t ||(X - w_t dW_t) dW_t^T||_F^2 / ||dW_t||_F^2``.

    RegMean with ``C_t = dW_t^T dW_t / ||dW_t||^2``, which the authors approach by gradient steps. With
    ``F = [dW_t / ||dW_t||]`` stacked by rows and ``K = [w_t dW_t dW_t^T / ||dW_t||]`` by columns, the solution of least
    norm is ``X = lambda * K (F^+)^T``: no Gram matrix of ``F``, so its condition number is not squared. One adapter is
    itself; adapters with weight 0 take no part.
    """
    core = layer.core()
    norms = core.cores.flatten(1).norm(dim=1)
    parts = [(M, norm) for M, norm in zip(core.cores, norms, strict=True) if norm > 0]
    if not parts:
        return core.join(core.cores[0])
    F = torch.cat([M / norm for M, norm in parts], dim=0)
    K = torch.cat([M @ M.T / norm for M, norm in parts], dim=1)
    U, S, Vh = torch.linalg.svd(F, full_matrices=False)
    rank = numerical_rank(S)
    return core.join(options.scale * (K @ U[:, :rank] / S[:rank]) @ Vh[:rank])


def _damp_correlations(C: Tensor, alpha: float) -> Tensor:
    return alpha * C + (1 - alpha) * torch.diag(C.diagonal())
