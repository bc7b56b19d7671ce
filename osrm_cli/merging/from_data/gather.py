"""Passes over the model that tell a merging rule what the adapters do not say, by ``Method.data_statistic``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from osrm_cli.merging.from_data import adamerging
from osrm_cli.merging.from_data.adamerging import LearnedWeights
from osrm_cli.merging.from_data.fisher import FisherInformation
from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.plan import MergePlan
from osrm_cli.progress import Progress


def gather_layer_data(plan: MergePlan, models: Sequence[TaskModel], folder: Path, progress: Progress) -> MergePlan:
    """The same plan with what its method needs from the model.

    Args:
        plan: Its method has passes.
        models: The tasks' classifiers, in the order of the adapters.
        folder: An empty folder for what is too large for memory; it has to be there until the merge is done.
        progress: Draws a bar.
    """
    if plan.method.data_statistic == "second-moments":  # collected while layers are merged
        return replace(plan, layer_data=SequentialMoments(models, plan.layers))
    if plan.method.data_statistic == "fisher":
        shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
        with progress("fisher", sum(len(model.encodings) for model in models), "examples") as advance:
            return replace(plan, layer_data=FisherInformation(models, shapes, folder, advance))
    with progress("weights", plan.recipe.options["steps"], "steps") as advance:
        weights, facts = adamerging.learn_weights(models, plan, advance)
    return replace(plan.with_learned_weights(weights), layer_data=LearnedWeights(facts))
