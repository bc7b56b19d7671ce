"""Second moments of each layer's inputs in the single models, for LOT Merging (arXiv:2505.23859)."""

from collections.abc import Mapping

from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import Fields
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.output_hooks import OutputHook, low_rank_hook


class SingleMoments(SequentialMoments):
    """Moments of a layer's inputs in each single model on its own task's text, collected when it is asked for."""

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``C_t = E[x* x*^T]``, ``(d_in, d_in)``, float64."""
        source = self._sources[layer]
        if source not in self._moments:
            # One source at a time: the layers that share an input run one after the other.
            self._moments = {
                source: tuple(
                    self._collect(model, source, single_model_hooks(model, self._plan, index))
                    for index, model in enumerate(self._models)
                )
            }
        return {"second_moments": self._moments[source]}


def single_model_hooks(model: TaskModel, plan: MergePlan, index: int) -> dict[str, OutputHook]:
    """What makes the base model a task's single model, by layer.

    Args:
        model: The task's.
        plan: Its weights scale the updates.
        index: Of the task among the plan's adapters.
    """
    deltas = {layer: model.delta(layer) for layer in plan.layers}
    return {layer: low_rank_hook(delta.scaled(plan.weight(index, layer))) for layer, delta in deltas.items() if delta}
