"""The interference penalty: what the adapter in training does to the other tasks' inputs, added to the loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from osrm_cli.artifacts import features
from osrm_cli.artifacts.adapter_files import PREFIX
from osrm_cli.artifacts.features import Features
from osrm_cli.artifacts.requests import requests, serving, used
from osrm_cli.errors import OsrmError
from osrm_cli.language.targets import is_conv1d
from osrm_cli.maths.gram import Gram
from osrm_cli.maths.lowrank import LowRank
from osrm_cli.maths.objectives import Objective

_LEAST_OWN = 1e-3  # added to the own energy, in units of the base model's: B starts at zero


@dataclass(frozen=True)
class _Layer:
    """One adapted layer, what its inputs are, and what the base model does to them."""

    module: Any  # a LoraLayer, which peft does not type as a module
    others: Gram
    base: float
    own: Gram | None
    own_base: float

    def to(self, like: torch.Tensor) -> "_Layer":
        return replace(self, others=self.others.to(like), own=self.own and self.own.to(like))

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


def open_features(folder: Path, task: str, unit: str) -> dict[str, Features]:
    """The features files that the penalty of a task reads.

    Raises:
        OsrmError: If they are missing, or hold no statistic that can serve.
    """
    files, row = features.open_folder(folder), reads(unit)
    files = {name: files[name] for name in used(files, task, row)}
    serving(files, [task], row)
    return files


class Penalty:
    """Mean over the layers of ``tr[(B^T B)(A C_out A^T)] / tr(W0 C_out W0^T)``, the scaling in B.

    In units of the own energy, that is divided by the same ratio on the task's own inputs: then learning more costs
    nothing in itself.
    """

    def __init__(self, model: PeftModel, others: Mapping[str, Gram], own: Mapping[str, Gram] | None, mu: float) -> None:
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
        weight = self.layers[0].module.get_parameter("lora_A.default.weight")
        if self.layers[0].others.matrix.device != weight.device:  # the trainer has moved the model
            self.layers = [layer.to(weight) for layer in self.layers]
        with torch.autocast(str(weight.device.type), enabled=False):
            return torch.stack([layer.interference() for layer in self.layers]).mean()


def _prepared(module: LoraLayer, name: str, others: Mapping[str, Gram], own: Mapping[str, Gram] | None) -> _Layer:
    layer: torch.nn.Module = module.get_base_layer()
    W = layer.get_parameter("weight").detach().float()  # noqa: N806
    W = W.T if is_conv1d(layer) else W  # noqa: N806
    if name not in others or others[name].matrix.shape[1] != W.shape[1]:
        raise OsrmError(
            f"the features have no inputs of width {W.shape[1]} for {name}",
            "collect them for the layers that are adapted, with --target-modules",
        )
    theirs, ours = others[name].to(W), own[name].to(W) if own else None
    return _Layer(module, theirs, theirs.base_energy(W), ours, ours.base_energy(W) if ours else 1.0)


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
    others: dict[str, Gram] = {}
    own: dict[str, Gram] = {}
    for found in requests(files, [task], reads(settings["penalty_unit"]), 1, 0, 0.0):
        for held, moment, rows in ((others, found.out_moment, found.out_rows), (own, found.own_moment, found.own_rows)):
            if (matrix := rows if moment is None else moment) is not None:
                held[found.layer] = Gram(matrix, factored=moment is None)
    return Penalty(model, others, own or None, settings["interference_penalty"])
