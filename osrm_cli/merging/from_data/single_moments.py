"""Second moments of each layer's inputs in the single models, for LOT Merging (arXiv:2505.23859)."""

from collections.abc import Mapping

from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.output_hooks import OutputHook, low_rank_output_hook


class SingleMoments(SequentialMoments):
    """Moments of a layer's inputs in each single model on its own task's text, collected when it is asked for."""

    def _changes_for(self, index: int) -> Mapping[str, OutputHook]:
        """What a task's examples see: its single model."""
        return single_model_hooks(self._models[index], self._plan, index)


def single_model_hooks(model: TaskModel, plan: MergePlan, index: int) -> dict[str, OutputHook]:
    """What makes the base model a task's single model, by layer.

    Args:
        model: The task's.
        plan: Its weights scale the updates.
        index: Of the task among the plan's adapters.
    """
    deltas = {layer: model.delta(layer) for layer in plan.layers}
    return {
        layer: low_rank_output_hook(delta.scaled(plan.weight(index, layer))) for layer, delta in deltas.items() if delta
    }
