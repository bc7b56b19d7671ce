"""Interference matrix: the energy of each adapter's update on each task's inputs, without a forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.linalg.row_stream import RowStream, Update, squared_frobenius_norm
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.models.checkpoint import Checkpoint
from osrm_cli.progress import Advance

Matrix = dict[str, dict[str, float]]  # by the update's task and the inputs' task


@dataclass(frozen=True)
class InterferenceMatrix:
    """Energies in units of the base model's own, ``E ||dW x||^2 / E ||W0 x||^2``.

    Attributes:
        relative: Mean over the layers.
        layers: By layer.
        norms: ``||dW||_F`` of each update, all layers together.
        relative_norms: The same in units of ``||W0||_F``.
    """

    relative: Matrix
    layers: Mapping[str, Matrix]
    norms: Mapping[str, float]
    relative_norms: Mapping[str, float]


def measure_interference(
    adapters: Sequence[Adapter], features: FeatureSet, base: Path, advance: Advance
) -> InterferenceMatrix:
    """Compute the matrix; a layer that an adapter does not change counts with zero.

    Args:
        adapters: One per task.
        features: Features of their tasks, perhaps of others too.
        base: Folder of the base model; only the target layers' weights are read.
        advance: Called with 1 after each layer.

    Raises:
        OsrmError: If the base model lacks a layer, or its outputs for a task's inputs are all zero.
    """
    checkpoint = Checkpoint.open(base)
    shapes = {
        name: (layer.d_out, layer.d_in)
        for adapter in adapters
        for name, layer in adapter.layers.items()
        if not layer.is_tensor
    }
    turned = any(adapter.config.fan_in_fan_out for adapter in adapters)
    layers: dict[str, Matrix] = {}
    squares, whole = dict.fromkeys((adapter.name for adapter in adapters), 0.0), 0.0
    for inputs in features.layers():
        for layer in (name for name in inputs.layers if name in shapes):
            W = checkpoint.read_weight(layer, shapes[layer], turned)  # noqa: N806 - the papers' letter
            bases = {adapter.name: inputs.moments[adapter.name].base_energy(W) for adapter in adapters}
            _check_interference_bases(layer, bases)
            layers[layer] = {adapter.name: dict.fromkeys(bases, 0.0) for adapter in adapters}
            for adapter in (each for each in adapters if layer in each.layers):
                update = adapter.update(layer, torch.float64)
                row = {task: _diagnosed_energy(update, inputs.moments[task]) / energy for task, energy in bases.items()}
                layers[layer][adapter.name] = row
                squares[adapter.name] += squared_frobenius_norm(update)
            whole += float(W.double().square().sum())
            advance(1)
    names = list(squares)
    relative = {t: {u: sum(each[t][u] for each in layers.values()) / len(layers) for u in names} for t in names}
    norms = {task: square**0.5 for task, square in squares.items()}
    return InterferenceMatrix(relative, layers, norms, {task: norm / whole**0.5 for task, norm in norms.items()})


def _diagnosed_energy(update: Update, inputs: SecondMoment) -> float:
    """``E ||dW x||^2``."""
    if isinstance(update, RowStream):
        return inputs.base_energy(update.dense())
    return float(inputs.energy(update))


def _check_interference_bases(layer: str, bases: Mapping[str, float]) -> None:
    for task, energy in bases.items():
        if not energy > 0:
            raise OsrmError(
                f"the base model's outputs of {layer} are all zero for the inputs of '{task}'",
                f"collect them again: osrm collect --task {task} --overwrite",
            )
