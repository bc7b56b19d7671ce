"""The interference penalty: what the adapter in training does to the other tasks' inputs, added to the loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from osrm_cli.artifacts.adapter_files import PREFIX
from osrm_cli.artifacts.features import Features
from osrm_cli.artifacts.requests import requests
from osrm_cli.errors import OsrmError
from osrm_cli.language.targets import is_conv1d
from osrm_cli.maths import interference
from osrm_cli.maths.lowrank import LowRank
from osrm_cli.maths.objectives import Objective

_LEAST_OWN = 1e-3  # added to the own energy, in units of the base model's: B starts at zero


@dataclass(frozen=True)
class Inputs:
    """One layer's inputs of one task, or of several together.

    Attributes:
        features: Their second moment ``(d_in, d_in)``, or rows ``(n, d_in)`` such as a sketch's.
        rows: Whether they are rows.
    """

    features: torch.Tensor
    rows: bool

    def energy(self, update: LowRank) -> torch.Tensor:
        """What an update does to them: ``E ||B A x||^2`` up to a factor that all updates share."""
        measure = interference.energy_of_rows if self.rows else interference.energy
        return measure(update, self.features)

    def on(self, W: torch.Tensor) -> "tuple[Inputs, float]":  # noqa: N803 - the papers' letter
        """The same where ``W`` ``(d_out, d_in)`` lies, and what it does to them."""
        found = Inputs(self.features.to(W), self.rows)
        if self.rows:
            return found, float((found.features @ W.T).square().sum())
        return found, float(interference.base_energy(W, found.features))


@dataclass(frozen=True)
class _Layer:
    """One adapted layer, what its inputs are, and what the base model does to them."""

    module: Any  # a LoraLayer, which peft does not type as a module
    others: Inputs
    base: float
    own: Inputs | None
    own_base: float

    def to(self, device: torch.device) -> "_Layer":
        own = self.own and Inputs(self.own.features.to(device), self.own.rows)
        return replace(self, others=Inputs(self.others.features.to(device), self.others.rows), own=own)

    def interference(self) -> torch.Tensor:
        A = self.module.get_parameter("lora_A.default.weight")  # noqa: N806
        B = self.module.get_parameter("lora_B.default.weight")  # noqa: N806
        update = LowRank(self.module.scaling["default"] * B, A)
        share = self.others.energy(update) / self.base
        if self.own is None:
            return share
        return share / (self.own.energy(update) / self.own_base + _LEAST_OWN)


def reads(unit: str) -> Objective:
    """What the penalty reads of the features, in the terms of an objective."""
    return Objective("penalty", "", "", "", ("second-moment", "sketch"), needs_others=True, needs_own=unit == "own")


class Penalty:
    """Mean over the layers of ``tr[(B^T B)(A C_out A^T)] / tr(W0 C_out W0^T)``, the scaling in B.

    In units of the own energy, that is divided by the same ratio on the task's own inputs: then learning more costs
    nothing in itself.
    """

    def __init__(
        self, model: PeftModel, others: Mapping[str, Inputs], own: Mapping[str, Inputs] | None, mu: float
    ) -> None:
        """Find the layers of a model, and what the base model does to the inputs.

        Args:
            model: The classifier in training, on its device.
            others: The other tasks' inputs of every adapted layer.
            own: The task's own; ``None`` to measure in units of the base model's energy.
            mu: Factor on the penalty in the loss.

        Raises:
            OsrmError: If the features lack a layer, or have it with another width.
        """
        self.mu = mu
        modules = {n.removeprefix(PREFIX): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        self.layers = [_prepared(module, name, others, own) for name, module in modules.items()]

    def interference(self) -> torch.Tensor:
        """The mean over the layers, a scalar, differentiable in every A and B."""
        device = self.layers[0].module.get_parameter("lora_A.default.weight").device
        if self.layers[0].others.features.device != device:  # the trainer has moved the model
            self.layers = [layer.to(device) for layer in self.layers]
        with torch.autocast(str(device.type), enabled=False):
            return torch.stack([layer.interference() for layer in self.layers]).mean()


def _prepared(module: LoraLayer, name: str, others: Mapping[str, Inputs], own: Mapping[str, Inputs] | None) -> _Layer:
    layer: torch.nn.Module = module.get_base_layer()
    W = layer.get_parameter("weight").detach().float()  # noqa: N806
    W = W.T if is_conv1d(layer) else W  # noqa: N806
    if name not in others or others[name].features.shape[1] != W.shape[1]:
        raise OsrmError(
            f"the features have no inputs of width {W.shape[1]} for {name}",
            "collect them for the layers that are adapted, with --target-modules",
        )
    theirs, base = others[name].on(W)
    ours, own_base = own[name].on(W) if own else (None, 1.0)
    return _Layer(module, theirs, base, ours, own_base)


def from_features(model: PeftModel, files: Mapping[str, Features], task: str, settings: Mapping[str, Any]) -> Penalty:
    """The penalty of a task's adapter against the other tasks of a features folder.

    Args:
        model: The classifier in training, on its device.
        files: Features files by task.
        task: The task in training.
        settings: ``interference_penalty``, the factor in the loss, and ``penalty_unit``.

    Raises:
        OsrmError: If the files hold neither second moments nor sketches, or not of the layers that are adapted.
    """
    others: dict[str, Inputs] = {}
    own: dict[str, Inputs] = {}
    for found in requests(files, [task], reads(settings["penalty_unit"]), 1, 0, 0.0):
        for held, moment, rows in ((others, found.out_moment, found.out_rows), (own, found.own_moment, found.own_rows)):
            if (features := rows if moment is None else moment) is not None:
                held[found.layer] = Inputs(features, rows=moment is None)
    return Penalty(model, others, own or None, settings["interference_penalty"])
