"""``merged/`` as a model: the base model's files with the update added, tensor by tensor."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.merged_layer import MergedLayer
from osrm_cli.merging.methods.layer_updates import MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.checkpoint import Checkpoint

# Model types whose layers with these names are Conv1D: their weights are stored as ``(d_in, d_out)``.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")


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
        is_flagged = any(adapter.config.fan_in_fan_out for adapter in plan.adapters)
        has_conv1d = _read_model_type(base_dir) in _CONV1D_MODELS
        weights: dict[str, tuple[str, bool]] = {}
        owners: dict[str, str] = {}
        for name, layer in plan.shapes.items():
            # PEFT writes one flag for all layers, that of the last one: where the architecture is known, it decides.
            is_conv1d = name.rpartition(".")[2] in _CONV1D_LAYERS if has_conv1d else is_flagged
            weights[name] = checkpoint.find_weight(name, (layer.d_out, layer.d_in), is_conv1d or layer.embedding)
            other = owners.setdefault(weights[name][0], name)
            if other != name:
                raise OsrmError(
                    f"layers {other} and {name} are both {weights[name][0]} of {base_dir}",
                    "use adapters that were trained on one class of model",
                )
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


def _read_model_type(base_dir: Path) -> str | None:
    """The architecture that ``config.json`` names."""
    path = base_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", "give the right base model with --model") from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    return model_type if isinstance(model_type, str) else None
