"""Second moments of each layer's inputs in the model merged so far, for RegMean++ (arXiv:2508.03121)."""

from collections.abc import Mapping, Sequence

import torch

from osrm_cli.features.collector import InputStatistics
from osrm_cli.features.statistics.accumulators import SecondMomentAccumulator
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import Fields, LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult, MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.layer_inputs import find_shared_inputs
from osrm_cli.models.output_hooks import OutputHook, low_rank_hook, with_output_hooks


class SequentialMoments(LayerData):
    """Moments that are collected when a layer is asked for, with the results of the layers before it in the model.

    Layers are merged in the order in which they run. Layers with the same input tensor share one pass over each
    task's text, which ends at the first of them. So a layer depends on everything below it, also within its own block.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names.
        plan: Its layers are merged; its weights scale the single models' updates, where those are run.

    Raises:
        OsrmError: If a layer takes no part in classification.
    """

    def __init__(self, models: Sequence[TaskModel], plan: MergePlan) -> None:
        self._models, self._plan = models, plan
        shell = models[0].with_head_loaded()
        targets = {name: shell.get_submodule(name) for name in plan.layers}
        self._sources = find_shared_inputs(shell, targets, models[0].batch([0])).sources
        self.sequence = tuple(self._sources)
        self.record = {"examples": {model.name: model.sample.record for model in models}}
        self._moments: dict[str, tuple[torch.Tensor, ...]] = {}

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``C_t`` of the merged model's inputs, ``(d_in, d_in)``, float64."""
        source = self._sources[layer]
        pending = {other for name, other in self._sources.items() if name not in merged}
        self._moments = {name: moments for name, moments in self._moments.items() if name in pending}
        if source not in self._moments:
            hooks = {name: self._hook(name, result) for name, result in merged.items()}
            self._moments[source] = tuple(self._collect(model, source, hooks) for model in self._models)
        return {"second_moments": self._moments[source]}

    def _hook(self, layer: str, result: LayerResult) -> OutputHook:
        """A layer's result on top of its output, so that the layers above see the merged model."""
        if isinstance(result, MaskedDelta):
            raise TypeError(f"{layer}: {type(result).__name__}, expected one update for all tasks")
        device = self._models[0].device
        if isinstance(result, RowStream):
            dense = result.dense().to(device, torch.float32)
            return lambda x, y: y + x @ dense.T
        factors = result.to(torch.float32)
        return low_rank_hook(LowRank(factors.B.to(device), factors.A.to(device)))

    def _collect(self, model: TaskModel, layer: str, hooks: Mapping[str, OutputHook]) -> torch.Tensor:
        shell = model.with_head_loaded()
        totals = InputStatistics(shell, {layer: shell.get_submodule(layer)}, [SecondMomentAccumulator])
        with with_output_hooks(shell, hooks):
            for rows in model.batches():
                totals.add(model.batch(rows), rows)
        moment: torch.Tensor = totals.sums[layer][0].finalize()
        return moment
