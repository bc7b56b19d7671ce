"""The interference penalty: energy of the update on the other tasks' inputs, added to the training loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch.autograd.function import once_differentiable

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import PREFIX
from osrm_cli.features.adapter_match import check_feature_layers
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.models.target_modules import is_conv1d
from osrm_cli.storage.provenance import check_base_provenance
from osrm_cli.storage.records import BaseModelId

_MIN_OWN_ENERGY = 1e-3  # added to the own energy, in units of the base model's: B starts at zero

# What ``gevd`` starts are trained with unless told otherwise: the best of studies/glue-minilm and of
# studies/text-smollm2.
DEFAULT_WEIGHT, DEFAULT_TEXT_WEIGHT = 3.0, 10.0


@dataclass(frozen=True)
class _PenaltyMoments:
    """Second moments of some layers' inputs.

    Attributes:
        moments: One for neighbouring layers that read the same input.
        counts: How many layers read each.
        unit: Factors from an update's energy, without its scaling, to a share of the base model's, ``(L,)``.
    """

    moments: Sequence[SecondMoment]
    counts: Sequence[int]
    unit: torch.Tensor

    def to(self, like: torch.Tensor) -> "_PenaltyMoments":
        return replace(self, moments=[moment.to(like) for moment in self.moments], unit=self.unit.to(like))

    def times(self, A: torch.Tensor) -> torch.Tensor:
        """``A C`` of every layer, ``(L, r, d_in)``."""
        parts = zip(self.moments, torch.split(A, list(self.counts)), strict=True)
        return torch.cat([moment.times(rows.flatten(0, 1)) for moment, rows in parts]).view_as(A)


@dataclass(frozen=True)
class _PenalizedLayers:
    """Adapted layers of one shape, computed together.

    Attributes:
        modules: The LoraLayers; a resumed run may give them other parameters.
        inputs: The other tasks', and the task's own where that is the unit.
    """

    modules: Sequence[Any]
    inputs: Sequence[_PenaltyMoments]

    def to(self, like: torch.Tensor) -> "_PenalizedLayers":
        return replace(self, inputs=[inputs.to(like) for inputs in self.inputs])

    def interference(self) -> torch.Tensor:
        """Relative energy of each layer's update, ``(L,)``."""
        A, B = (torch.stack(factors) for factors in zip(*map(_trained_lora_factors, self.modules), strict=True))
        with torch.no_grad():
            AC = torch.stack([inputs.times(A) for inputs in self.inputs])
        shares = penalty_energies(A, B, AC) * torch.stack([inputs.unit for inputs in self.inputs])
        return shares[0] if len(shares) == 1 else shares[0] / (shares[1] + _MIN_OWN_ENERGY)


def default_penalty_weight(start: Adapter) -> float:
    """Weight of the penalty for a start, 0 for none: only ``gevd`` has shown that it gains by it."""
    if start.record.get("settings", {}).get("objective") != "gevd":
        return 0.0
    return DEFAULT_TEXT_WEIGHT if start.is_text else DEFAULT_WEIGHT


def open_penalty_features(folder: Path, start: Adapter, base: BaseModelId, unit: str) -> FeatureSet:
    """Open the features that the penalty of an adapter reads: the other tasks', and in unit ``own`` its own.

    Raises:
        OsrmError: If they are missing, of another base model, lack a layer, or hold no statistic that can serve.
    """
    features, task = FeatureSet.open(folder), start.name
    tasks = features.other_tasks(task)
    if unit == "own":
        features.require_task(task, "--penalty-unit own")
        tasks.append(task)
    features = features.only(tasks).select((SECOND_MOMENT, "sketch"), "the interference penalty")
    check_base_provenance({start.folder: base, features.paths[0]: features.base})
    for file in features.files.values():
        check_feature_layers(start, file, features.tasks)
    return features


class InterferencePenalty:
    """Mean over the layers of ``tr[(B^T B)(A C_out A^T)] / tr(W0 C_out W0^T)``, the scaling in B.

    In units of the own energy, it is divided by the same ratio on the task's own inputs, so that a larger update alone
    costs nothing.
    """

    def __init__(
        self, model: PeftModel, others: Mapping[str, SecondMoment], own: Mapping[str, SecondMoment] | None, mu: float
    ) -> None:
        """Find the adapted layers of a model, and the base model's energy on their inputs.

        Args:
            model: The classifier in training, on its device.
            others: The other tasks' inputs of every adapted layer.
            own: The task's own; ``None`` to measure in units of the base model's energy.
            mu: Factor on the penalty in the loss.
        """
        self.mu = mu
        by_shape: dict[tuple[torch.Size, ...], dict[str, Any]] = {}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                shapes = tuple(weight.shape for weight in _trained_lora_factors(module))
                by_shape.setdefault(shapes, {})[name.removeprefix(PREFIX)] = module
        inputs = [others] if own is None else [others, own]
        self.stacks = [
            _PenalizedLayers(list(layers.values()), [_gather_penalty_moments(layers, moments) for moments in inputs])
            for layers in by_shape.values()
        ]

    def interference(self) -> torch.Tensor:
        """The mean over the layers, a scalar, differentiable in every A and B."""
        weight = _trained_lora_factors(self.stacks[0].modules[0])[0]
        if self.stacks[0].inputs[0].unit.device != weight.device:  # the trainer has moved the model
            self.stacks = [stack.to(weight) for stack in self.stacks]
        with torch.autocast(str(weight.device.type), enabled=False):
            return torch.cat([stack.interference() for stack in self.stacks]).mean()


def _trained_lora_factors(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def _gather_penalty_moments(layers: Mapping[str, Any], moments: Mapping[str, SecondMoment]) -> _PenaltyMoments:
    shared: list[SecondMoment] = []
    counts, unit = [], []
    last = None
    for name, module in layers.items():
        layer: torch.nn.Module = module.get_base_layer()
        W = dequantize_module_weight(layer).detach().float()
        W = W.T if is_conv1d(layer) else W
        if moments[name] is not last:
            last = moments[name]
            shared.append(last.to(W))
            counts.append(0)
        counts[-1] += 1
        unit.append(module.scaling["default"] ** 2 / (shared[-1].base_energy(W) or 1.0))
    return _PenaltyMoments(shared, counts, torch.tensor(unit))


def penalty_from_features(
    model: PeftModel, features: FeatureSet, task: str, settings: Mapping[str, Any]
) -> InterferencePenalty:
    """The penalty of a task's adapter against the other tasks of a features folder.

    Args:
        model: The classifier in training, on its device.
        features: From ``open_penalty_features``.
        task: The task in training.
        settings: ``interference_penalty``, the factor in the loss, and ``penalty_unit``.

    Raises:
        OsrmError: If a file is damaged.
    """
    others: dict[str, SecondMoment] = {}
    own: dict[str, SecondMoment] = {}
    for inputs in features.layers(per_token=False):  # every energy is divided by another one
        others |= dict.fromkeys(inputs.layers, inputs.others(task))
        if settings["penalty_unit"] == "own":
            own |= dict.fromkeys(inputs.layers, inputs.moments[task])
    return InterferencePenalty(model, others, own or None, settings["interference_penalty"])


class _PenaltyEnergies(torch.autograd.Function):
    """``delta_energy`` from ``A C``: as C is symmetric, the gradient needs no other product with it."""

    @staticmethod
    def forward(ctx: Any, A: torch.Tensor, B: torch.Tensor, AC: torch.Tensor) -> torch.Tensor:
        inner, seen = B.mT @ B, AC @ A.mT
        ctx.save_for_backward(B, AC, inner, seen)
        return (inner * seen).sum(dim=(-2, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        B, AC, inner, seen = ctx.saved_tensors
        twice = 2 * grad[..., None, None]
        return inner @ (twice * AC).sum(dim=0), B @ (twice * seen).sum(dim=0), None


def penalty_energies(A: torch.Tensor, B: torch.Tensor, AC: torch.Tensor) -> torch.Tensor:
    """``delta_energy`` of L layers' updates on the inputs of U kinds, ``(U, L)``, differentiable in A and B.

    In training C is by far the largest thing that is read, and so it is read once a step.

    Args:
        A: ``(L, r, d_in)``.
        B: ``(L, d_out, r)``, the scaling in it.
        AC: ``A`` times the inputs' symmetric second moments, ``(U, L, r, d_in)``; its gradient is accounted for.
    """
    energies: torch.Tensor = _PenaltyEnergies.apply(A, B, AC)  # type: ignore[no-untyped-call]
    return energies
