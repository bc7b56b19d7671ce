"""The weights of a backbone, to which the updates of many merges are added one after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.models.target_modules import is_conv1d


class SweptDeltaSource(Protocol):
    """Updates to add to the backbone's weights."""

    @property
    def by_task(self) -> bool:
        """Whether the tasks have different updates."""

    def delta(self, layer: str, index: int) -> torch.Tensor | None:
        """One layer's update ``(d_out, d_in)`` for the task of the adapter at ``index``; ``None`` if there is none."""


@dataclass(frozen=True)
class SweptSingleDeltas:
    """The update of each task's own adapter."""

    adapters: Sequence[Adapter]
    by_task: bool = True

    def delta(self, layer: str, index: int) -> torch.Tensor | None:
        """The adapter's update, float32."""
        adapter = self.adapters[index]
        return adapter.delta(layer).dense() if layer in adapter.layers else None


class Indexed(Protocol):
    """A task of a sweep."""

    @property
    def index(self) -> int:
        """Index of its adapter among all that are merged."""


T = TypeVar("T", bound=Indexed)


class SweptWeights:
    """Weights of a model that merges change.

    Args:
        model: The model; its parameters are converted to ``dtype``.
        layers: Names of the layers that change.
        dtype: Precision of the model. Updates are always added in float32.
    """

    def __init__(self, model: torch.nn.Module, layers: Sequence[str], dtype: torch.dtype) -> None:
        self._layers = {name: model.get_submodule(name) for name in layers}
        self._exact = {name: layer.get_parameter("weight").clone() for name, layer in self._layers.items()}
        for parameter in model.parameters():  # buffers such as rotary frequencies keep their precision
            parameter.data = parameter.data.to(dtype)

    def each(self, tasks: Sequence[T], deltas: SweptDeltaSource) -> Iterator[T]:
        """Yield each task after adding its update, or the one of all tasks, to the weights."""
        for position, task in enumerate(tasks):
            if position == 0 or deltas.by_task:
                self._add_delta(deltas, task.index)
            yield task

    @torch.no_grad()
    def _add_delta(self, deltas: SweptDeltaSource, index: int) -> None:
        """Add an update to the base model's weights, which are kept exactly: no error accumulates over many merges."""
        for name, layer in self._layers.items():
            delta, weight = deltas.delta(name, index), self._exact[name]
            if delta is not None:
                is_transposed = is_conv1d(layer) or isinstance(layer, torch.nn.Embedding)
                weight = weight + (delta.T if is_transposed else delta).to(weight.device)
            layer.get_parameter("weight").copy_(weight)
