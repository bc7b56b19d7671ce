"""Full fine-tuning of a start's layers, everywhere or in the free subspace alone, as an adapter of high rank.

With ``dW = B A`` and orthonormal, frozen ``A``, the gradient of B is the weight's gradient times ``A^T``. The identity
as ``A`` therefore trains the whole weight, and a basis of the free subspace trains ``dW`` in it: steps, momentum and
weight decay cannot leave it. Projecting the gradients alone would not ensure this, since Adam divides them entry by
entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import AdapterLayer
from osrm_cli.adapters.writer import adapter_config_with_ranks
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.subspaces import orthogonal_complement


@dataclass(frozen=True)
class FullStart(Adapter):
    """A start whose factors train whole weights.

    Attributes:
        free: Basis of the free subspace by layer, orthonormal rows ``(r, d_in)``; the identity for layers without one.
    """

    free: Mapping[str, torch.Tensor] | None = None

    def lora_factors(
        self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> LowRank:
        """``B = 0`` and the basis as ``A``."""
        shape = self.layers[layer]
        A = torch.eye(shape.d_in) if self.free is None else self.free[layer]  # noqa: N806 - the papers' letter
        return LowRank(torch.zeros(shape.d_out, shape.rank, dtype=dtype, device=device), A.to(device, dtype))


def to_full_training_start(start: Adapter, others: FeatureSet | None, energy: float) -> FullStart:
    """A start for the same layers that trains their whole weights; its own factors are not used.

    Args:
        start: Decides the layers and the head.
        others: Features of the other tasks, to train outside of their principal subspace; ``None`` to train everywhere.
        energy: Share of the other tasks' second moment in that subspace.

    Raises:
        OsrmError: If the start adapts an embedding, or no direction of a layer is free.
    """
    for name, layer in start.layers.items():
        if layer.embedding:
            raise OsrmError(f"{start.folder} adapts the embedding {name}, expected linear layers only")
    free = find_trainable_subspaces(start.name, others, energy) if others else None
    layers = {
        name: AdapterLayer(layer.d_out, layer.d_in, len(free[name]) if free else layer.d_in, 1.0, embedding=False)
        for name, layer in start.layers.items()
    }
    plain = replace(start.config, lora_alpha=None, use_rslora=False, rank_pattern={}, alpha_pattern={})
    config = adapter_config_with_ranks(plain, {name: layer.rank for name, layer in layers.items()})
    given = {name: getattr(start, name) for name in Adapter.__dataclass_fields__}
    return FullStart(**{**given, "config": config, "layers": layers}, free=free)


def find_trainable_subspaces(task: str, features: FeatureSet, energy: float) -> dict[str, torch.Tensor]:
    """By layer, orthonormal rows ``(r, d_in)``: what is orthogonal to the other tasks' principal subspace.

    Args:
        task: The task in training.
        features: Features of the other tasks.
        energy: Share of the trace of their second moment in the principal subspace.

    Raises:
        OsrmError: If no direction of a layer is free.
    """
    free: dict[str, torch.Tensor] = {}
    for inputs in features.layers(per_token=False):
        basis = orthogonal_complement(inputs.others(task).spectrum().main_space(energy)).float()
        if not len(basis):
            raise OsrmError(
                f"{inputs.layers[0]}: no direction is free of {energy:.4g} of the other tasks' energy",
                "give a lower --project-energy, or more samples to 'osrm collect'",
            )
        free |= dict.fromkeys(inputs.layers, basis)
    return free
