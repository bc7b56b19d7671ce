"""Statistics of the tasks' data that a merging method needs, by ``Method.data_statistic``."""

from collections.abc import Sequence
from pathlib import Path

from osrm_cli.merging.from_data import adamerging
from osrm_cli.merging.from_data.adamerging import LearnedWeights
from osrm_cli.merging.from_data.fisher import FisherInformation
from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.sequential import SequentialTargets
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.plan import MergePlan
from osrm_cli.progress import Progress


def gather_layer_data(
    plan: MergePlan, models: Sequence[TaskModel], folder: Path, progress: Progress
) -> tuple[MergePlan, LayerData]:
    """Run the model on the tasks' examples and compute what the plan's method needs.

    Args:
        plan: Its method has a data statistic.
        models: The tasks' classifiers, in the order of the adapters.
        folder: An empty folder for what is too large for memory; it has to be there until the merge is done.
        progress: Draws a bar.

    Returns:
        The plan to carry out, which has the weights if the method learns them, and the inputs of each layer.
    """
    if plan.method.data_statistic == "second-moments":  # collected while layers are merged
        return plan, SequentialMoments(models, plan.layers)
    if plan.method.data_statistic == "cross-moments":
        return plan, SequentialTargets(models, plan)
    if plan.method.data_statistic == "fisher":
        shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
        with progress("fisher", sum(len(model.encodings) for model in models), "examples") as advance:
            return plan, FisherInformation(models, shapes, folder, advance)
    with progress("weights", plan.recipe.options["steps"], "steps") as advance:
        weights, record = adamerging.learn_weights(models, plan, advance)
    return plan.with_learned_weights(weights), LearnedWeights(record)
