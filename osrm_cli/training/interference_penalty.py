"""The interference penalty: what the adapter in training does to the other tasks' inputs, added to the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from osrm_cli.adapters.layers import PREFIX
from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import FeaturesFile, open_features_folder
from osrm_cli.initialization.from_features import choose_statistic, iter_layer_problems, tasks_read
from osrm_cli.initialization.objectives.table import Objective
from osrm_cli.linalg import interference
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.models.target_modules import is_conv1d

_LEAST_OWN = 1e-3  # added to the own energy, in units of the base model's: B starts at zero


@dataclass(frozen=True)
class _LayerMoments:
    """What the inputs of some layers are.

    Attributes:
        grams: One for neighbours that read the same.
        counts: How many layers read each.
        unit: What turns an update's energy, without its scaling, into a share of the base model's, ``(L,)``.
    """

    grams: Sequence[SecondMoment]
    counts: Sequence[int]
    unit: torch.Tensor

    def to(self, like: torch.Tensor) -> "_LayerMoments":
        return replace(self, grams=[gram.to(like) for gram in self.grams], unit=self.unit.to(like))

    def times(self, A: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the papers' letter
        """``A C`` of every layer, ``(L, r, d_in)``."""
        shared = zip(self.grams, torch.split(A, list(self.counts)), strict=True)
        return torch.cat([gram.times(rows.flatten(0, 1)) for gram, rows in shared]).view_as(A)


@dataclass(frozen=True)
class _SameShapeLayers:
    """Adapted layers of one shape, which are computed together.

    Attributes:
        modules: The LoraLayers; a resumed run may give them other parameters.
        inputs: The other tasks', and the task's own where that is the unit.
    """

    modules: Sequence[Any]
    inputs: Sequence[_LayerMoments]

    def to(self, like: torch.Tensor) -> "_SameShapeLayers":
        return replace(self, inputs=[inputs.to(like) for inputs in self.inputs])

    def interference(self) -> torch.Tensor:
        """``(L,)``."""
        A, B = (torch.stack(factors) for factors in zip(*map(_factors, self.modules), strict=True))  # noqa: N806
        with torch.no_grad():
            AC = torch.stack([inputs.times(A) for inputs in self.inputs])  # noqa: N806
        shares = interference.layer_energies(A, B, AC) * torch.stack([inputs.unit for inputs in self.inputs])
        return shares[0] if len(shares) == 1 else shares[0] / (shares[1] + _LEAST_OWN)


def penalty_objective(unit: str) -> Objective:
    """What the penalty reads of the features, in the terms of an objective."""
    return Objective("penalty", "", "", "", ("second-moment", "sketch"), needs_others=True, needs_own=unit == "own")


def open_penalty_features(folder: Path, task: str, unit: str) -> dict[str, FeaturesFile]:
    """The features files that the penalty of a task reads.

    Raises:
        OsrmError: If they are missing, or hold no statistic that can serve.
    """
    files, row = open_features_folder(folder), penalty_objective(unit)
    files = {name: files[name] for name in tasks_read(files, task, row)}
    choose_statistic(files, [task], row)
    return files


class InterferencePenalty:
    """Mean over the layers of ``tr[(B^T B)(A C_out A^T)] / tr(W0 C_out W0^T)``, the scaling in B.

    In units of the own energy, that is divided by the same ratio on the task's own inputs: then learning more costs
    nothing in itself.
    """

    def __init__(
        self, model: PeftModel, others: Mapping[str, SecondMoment], own: Mapping[str, SecondMoment] | None, mu: float
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
        alike: dict[tuple[torch.Size, ...], dict[str, Any]] = {}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                shapes = tuple(weight.shape for weight in _factors(module))
                alike.setdefault(shapes, {})[name.removeprefix(PREFIX)] = module
        held = [others] if own is None else [others, own]
        self.stacks = [
            _SameShapeLayers(list(layers.values()), [_inputs(layers, grams) for grams in held])
            for layers in alike.values()
        ]

    def interference(self) -> torch.Tensor:
        """The mean over the layers, a scalar, differentiable in every A and B."""
        weight = _factors(self.stacks[0].modules[0])[0]
        if self.stacks[0].inputs[0].unit.device != weight.device:  # the trainer has moved the model
            self.stacks = [stack.to(weight) for stack in self.stacks]
        with torch.autocast(str(weight.device.type), enabled=False):
            return torch.cat([stack.interference() for stack in self.stacks]).mean()


def _factors(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def _inputs(layers: Mapping[str, Any], held: Mapping[str, SecondMoment]) -> _LayerMoments:
    grams: list[SecondMoment] = []
    counts, unit = [], []
    last = None
    for name, module in layers.items():
        layer: torch.nn.Module = module.get_base_layer()
        W = layer.get_parameter("weight").detach().float()  # noqa: N806
        W = W.T if is_conv1d(layer) else W  # noqa: N806
        if name not in held or held[name].matrix.shape[1] != W.shape[1]:
            raise OsrmError(
                f"the features have no inputs of width {W.shape[1]} for {name}",
                "collect them for the layers that are adapted, with --target-modules",
            )
        if held[name].matrix is not last:
            last = held[name].matrix
            grams.append(held[name].to(W))
            counts.append(0)
        counts[-1] += 1
        unit.append(module.scaling["default"] ** 2 / (grams[-1].base_energy(W) or 1.0))
    return _LayerMoments(grams, counts, torch.tensor(unit))


def penalty_from_features(
    model: PeftModel, files: Mapping[str, FeaturesFile], task: str, settings: Mapping[str, Any]
) -> InterferencePenalty:
    """The penalty of a task's adapter against the other tasks of a features folder.

    Args:
        model: The classifier in training, on its device.
        files: Features files by task.
        task: The task in training.
        settings: ``interference_penalty``, the factor in the loss, and ``penalty_unit``.

    Raises:
        OsrmError: If the files hold neither second moments nor sketches, or not of the layers that are adapted.
    """
    others: dict[str, SecondMoment] = {}
    own: dict[str, SecondMoment] = {}
    for found in iter_layer_problems(files, [task], penalty_objective(settings["penalty_unit"]), 1, 0, 0.0):
        for held, moment, rows in ((others, found.out_moment, found.out_rows), (own, found.own_moment, found.own_rows)):
            if (matrix := rows if moment is None else moment) is not None:
                held[found.layer] = SecondMoment(matrix, factored=moment is None)
    return InterferencePenalty(model, others, own or None, settings["interference_penalty"])
