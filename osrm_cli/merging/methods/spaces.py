"""Any rule in other coordinates: each function here takes a rule and returns a rule.

A rule sees ordinary updates; what they are written in is the business of these wrappers.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from osrm_cli.linalg.low_rank import LowRank, low_rank_cores, squared_norm
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions

Rule = Callable[[LayerUpdates, MethodOptions], LowRank | RowStream]


def core(rule: Rule) -> Rule:
    """Apply an element rule to the cores ``M_t = Q_B^T w_t dW_t Q_A`` (core space, arXiv:2509.17786).

    The result is ``Q_B rule(M_1 ... M_T) Q_A^T``, of rank at most ``sum r_t``. The bases are singular vectors of the
    joined updates; the paper takes those of the joined factors, which change when a scale moves from ``B`` to ``A``.
    Densities count coordinates of the core, so they do not carry over from the element space.
    """

    def merged(layer: LayerUpdates, options: MethodOptions) -> LowRank:
        space = low_rank_cores(layer.weighted).in_principal_bases()
        exact = [update.to(torch.float64) for update in layer.weighted]
        cores = tuple(LowRank(space.Q_B.T @ update.B, update.A @ space.Q_A) for update in exact)
        return space.join(rule(layer.with_deltas(cores), options).dense())

    return merged


def knots(rule: Rule) -> Rule:
    """Apply an element rule in the basis that the tasks share (KnOTS, arXiv:2410.19735).

    ``[w_1 dW_1 ... w_T dW_T] = U S [V_1 ... V_T]``; result ``U rule(S V_1 ... S V_T)``, of rank at most ``sum r_t``.
    ``S V_t = U^T w_t dW_t``, and ``U`` comes from the cores, so the large SVD is never taken; directions of singular
    value 0 are left out.
    """

    def merged(layer: LayerUpdates, options: MethodOptions) -> LowRank:
        space = layer.core().in_principal_bases()
        if layer.is_dense:
            aligned = tuple(LowRank(M, space.Q_A.T) for M in space.cores)
        else:
            exact = [update.to(torch.float64) for update in layer.weighted]
            aligned = tuple(LowRank(space.Q_B.T @ update.B, update.A) for update in exact)
        return LowRank(space.Q_B, rule(layer.with_deltas(aligned), options).dense())

    return merged


def pico(rule: Rule) -> Rule:
    """Scale down what the tasks' ``B`` share before any rule, then restore the norm (Pico, arXiv:2604.16826).

    ``[w_1 B_1 ... w_T B_T] = U diag(sigma) V^T``; ``s_j = sigma_j^2 / sum sigma^2``; ``a_j = 1 / (1 + (T - 1) s_j)``.
    The rule sees ``U diag(a) U^T w_t B_t A_t``; its result is scaled to ``lambda * mean_t ||w_t dW_t||_F``. ``B`` is
    taken with the adapter's scaling folded in; with equal scalings that changes nothing. One adapter is itself where it
    is under the rule. Not linear in the weights.
    """

    def merged(layer: LayerUpdates, options: MethodOptions) -> LowRank | RowStream:
        updates = [update.to(torch.float64) for update in layer.weighted]
        U, sigma, _ = torch.linalg.svd(torch.cat([update.B for update in updates], dim=1), full_matrices=False)
        shares = sigma.square() / sigma.square().sum().clamp_min(torch.finfo(sigma.dtype).tiny)
        scales = 1 / (1 + (len(updates) - 1) * shares)
        calibrated = tuple(LowRank((U * scales) @ (U.T @ update.B), update.A) for update in updates)
        result = rule(layer.with_deltas(calibrated), replace(options, scale=1.0))
        mean = sum(squared_norm(update) ** 0.5 for update in updates) / len(updates)
        norm = (squared_norm(result) if isinstance(result, LowRank) else result.squared_norm()) ** 0.5
        # A result that is nothing but rounding must not be raised to full size.
        return result.scaled(options.scale * (mean / norm if norm > 1e-9 * mean else 1.0))

    return merged
