"""``merged/`` as a model: the base model's files with the update added, tensor by tensor."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from osrm_cli.errors import OsrmError
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
        modules: New values of tensors, by their name in the base model.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype | None
    weights: Mapping[str, tuple[str, bool]]
    modules: Mapping[str, torch.Tensor]

    @classmethod
    def find(cls, plan: MergePlan, base_dir: Path, shared: Mapping[str, torch.Tensor]) -> "ModelTarget":
        """Find each layer's weight, and each tensor of a module that was trained as a whole.

        Args:
            plan: What is merged.
            base_dir: The base model.
            shared: Tensors of such modules, see ``SavedModules``.

        Raises:
            OsrmError: If the base model's files are damaged or do not fit the adapters.
        """
        checkpoint = Checkpoint.open(base_dir)
        is_flagged = any(adapter.config.fan_in_fan_out for adapter in plan.adapters)
        config = _read_config(base_dir)
        has_conv1d = config.get("model_type") in _CONV1D_MODELS
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
        modules = {_find_tensor(checkpoint, name, tensor): tensor for name, tensor in shared.items()}
        if modules and config.get("tie_word_embeddings", False):
            raise OsrmError(
                f"{base_dir} ties its output layer to the embeddings: with modules_to_save they may differ",
                "leave out --as model",
            )
        return cls(checkpoint, plan.dtype if plan.recipe.dtype else None, weights, modules)

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
            delta = layer.result.dense().cpu()
            wide = torch.promote_types(weight.dtype, delta.dtype)
            return weight.to(wide) + (delta.T if self.weights[layer.name][1] else delta).to(wide)

        changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            weight: add for weight, _ in self.weights.values()
        }
        for name, tensor in self.modules.items():
            changes[name] = functools.partial(_replaced, tensor)
        self.checkpoint.write(stage, changes, self.dtype)
        next(layers, None)  # lets the last layer count in the progress
        return kept


def _find_tensor(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> str:
    """The base model's name of a tensor, which a model with a head may call otherwise than the bare one."""
    names = [each for each in (name, name.partition(".")[2]) if each in checkpoint.tensors]
    names = names or [each for each in checkpoint.tensors if each.partition(".")[2] == name]
    if not names:
        raise OsrmError(
            f"{checkpoint.folder} has no tensor {name}, which modules_to_save stores as a whole", "leave out --as model"
        )
    if checkpoint.tensors[names[0]].shape != tuple(tensor.shape):
        raise OsrmError(
            f"{name} is {tuple(tensor.shape)} in the adapter, {checkpoint.tensors[names[0]].shape} in "
            f"{checkpoint.folder}: its vocabulary has grown",
            "leave out --as model",
        )
    return names[0]


def _replaced(new: torch.Tensor, _old: torch.Tensor) -> torch.Tensor:
    return new


def _read_config(base_dir: Path) -> dict[str, Any]:
    """The base model's ``config.json``."""
    path = base_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", "give the right base model with --model") from None
    return config if isinstance(config, dict) else {}
