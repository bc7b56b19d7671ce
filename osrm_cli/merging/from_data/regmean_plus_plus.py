"""Second moments of each layer's inputs in the model merged so far, for RegMean++ (arXiv:2508.03121)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from osrm_cli.features.statistics.accumulators import SecondMomentAccumulator
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.from_data.passes import LayerwisePasses, can_hold_passes
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import Fields, LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult, MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.output_hooks import OutputHook, low_rank_output_hook


class SequentialMoments(LayerData):
    """Moments that are collected when a layer is asked for, with the results of the layers before it in the model.

    Layers are merged in the order in which they run. Layers with the same input tensor share one pass over each
    task's text, which waits before the first of them. So a layer depends on everything below it, also within its own
    block.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names.
        plan: Its layers are merged; its weights scale the single models' updates, where those are run.

    Raises:
        OsrmError: If a layer takes no part in classification.
    """

    def __init__(self, models: Sequence[TaskModel], plan: MergePlan) -> None:
        self._models, self._plan = models, plan
        self._changes: dict[str, OutputHook] = {}  # what the layers that are merged add to their outputs
        self._passes = [self._begin_passes(self._changes_for(index), index) for index in range(len(models))]
        self._sources = self._passes[0].inputs.sources
        self.sequence = tuple(self._sources)
        self.record = {"examples": {model.name: model.sample.record for model in models}}
        self._moments: dict[str, tuple[Any, ...]] = {}

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``C_t`` of the merged model's inputs, ``(d_in, d_in)``, float64."""
        return {"second_moments": self._moments_of(layer, merged)}

    def _changes_for(self, _index: int) -> Mapping[str, OutputHook]:
        """What a task's examples see: the model merged so far."""
        return self._changes

    def _begin_passes(self, changes: Mapping[str, OutputHook], index: int) -> LayerwisePasses:
        return LayerwisePasses(self._models[index], self._plan.layers, changes, can_hold_passes(self._models))

    def _moments_of(self, layer: str, merged: Mapping[str, LayerResult]) -> tuple[Any, ...]:
        """A layer's moments, one for each task, kept as long as a layer with the same inputs is to be merged."""
        for name in merged.keys() - self._changes.keys():
            self._changes[name] = self._merged_hook(name, merged[name])
        pending = {other for name, other in self._sources.items() if name not in merged}
        self._moments = {name: moments for name, moments in self._moments.items() if name in pending}
        source = self._sources[layer]
        if source not in self._moments:
            self._moments[source] = tuple(self._collect_moments(index, source) for index in range(len(self._models)))
        return self._moments[source]

    def _collect_moments(self, index: int, source: str) -> Any:
        total = SecondMomentAccumulator(self._plan.shapes[source].d_in)
        for x, mask in self._passes[index].run_to(source):
            total.add(x, mask, range(len(x)))
        return total.finalize()

    def _merged_hook(self, layer: str, result: LayerResult) -> OutputHook:
        """A layer's result on top of its output, so that the layers above see the merged model."""
        if isinstance(result, MaskedDelta):
            raise TypeError(f"{layer}: {type(result).__name__}, expected one update for all tasks")
        device = self._models[0].device
        if isinstance(result, RowStream):
            dense = result.dense().to(device, torch.float32)
            return lambda x, y: y + x @ dense.T
        factors = result.to(torch.float32)
        return low_rank_output_hook(LowRank(factors.B.to(device), factors.A.to(device)))
