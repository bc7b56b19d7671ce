"""Results that were learned from data; the learning itself is in ``merging/from_data``."""

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import Update
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.linear import task_arith
from osrm_cli.merging.methods.options import MethodOptions


def distill(layer: LayerUpdates, options: MethodOptions) -> Update:
    """The merged factors that bring the merged model nearest to the single models, by gradient steps.

    From another method's result (``start``, times ``lambda``, cut to ``rank``), Adam minimises over ``B`` and ``A`` of
    every layer the mean over tasks, on texts of the task, of ``mean_l ||h_l - h_l*||^2 / var h_l* + ||z - z*||^2 / var
    z* + KL(p* || p) / KL(p* || mean p*)``: ``h_l`` the inputs of some layers, ``z`` what the head's last layer reads,
    ``p`` what it says, and ``*`` the single model's own. Scores count like ``z``. Of a text task ``p`` is the next
    token's distribution at the positions of a completion that the single model has written, and the unit of its
    divergence that of the base model. The factors that are best on held-out
    texts are kept, so never worse ones than the start. Compare Representation Surgery (arXiv:2402.02705), ProDistill
    (arXiv:2502.12706). Without any step it is the weighted sum.
    """
    if layer.factors is None:
        return task_arith(layer, options)
    B, A = layer.factors
    return LowRank(B, A)
