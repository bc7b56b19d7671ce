"""``merged/`` as a model: the base model's files with the update added, tensor by tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.merged_layer import MergedLayer
from osrm_cli.merging.methods.layer_updates import MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class ModelTarget:
    """The weights of a base model that a merge changes.

    Attributes:
        checkpoint: The base model's files.
        dtype: Type of the floating-point tensors that are written; ``None`` keeps each tensor's own.
        weights: By layer: its tensor, and whether that is stored as ``(d_in, d_out)``.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype | None
    weights: Mapping[str, tuple[str, bool]]

    @classmethod
    def find(cls, plan: MergePlan, base_dir: Path) -> "ModelTarget":
        """Find each layer's weight.

        Raises:
            OsrmError: If the base model's files are damaged or do not fit the adapters.
        """
        checkpoint = Checkpoint.open(base_dir)
        conv = any(adapter.config.fan_in_fan_out for adapter in plan.adapters)
        weights = {
            name: checkpoint.find_weight(name, (layer.d_out, layer.d_in), conv or layer.embedding)
            for name, layer in plan.shapes.items()
        }
        return cls(checkpoint, plan.dtype if plan.recipe.dtype else None, weights)

    @property
    def order(self) -> list[str]:
        """The layers in the order in which ``write`` takes them."""
        layers = {weight: layer for layer, (weight, _) in self.weights.items()}
        return [layers[name] for name in self.checkpoint.tensor_order(self.dtype) if name in layers]

    def write(self, stage: Path, layers: Iterator[MergedLayer]) -> dict[str, float]:
        """Copy the model with every layer's result added to its weight.

        Args:
            stage: An existing, empty folder that is being staged.
            layers: Results in the order of ``order``.

        Returns:
            By layer, the share of the energy that is left after recompression.
        """
        kept: dict[str, float] = {}

        def add(weight: torch.Tensor) -> torch.Tensor:
            layer = next(layers)
            kept[layer.name] = layer.kept
            if isinstance(layer.result, MaskedDelta):
                raise TypeError(f"{layer.name}: an update per task cannot be added to one model")
            delta = (layer.result.dense() if isinstance(layer.result, LowRank) else layer.result).cpu()
            wide = torch.promote_types(weight.dtype, delta.dtype)
            return weight.to(wide) + (delta.T if self.weights[layer.name][1] else delta).to(wide)

        self.checkpoint.write(stage, {weight: add for weight, _ in self.weights.values()}, self.dtype)
        next(layers, None)  # lets the last layer count in the progress
        return kept
