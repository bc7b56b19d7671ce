"""Statistics of the tasks' data that a merging method needs, by ``Method.data_statistic``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.foreign import ForeignAdapter
from osrm_cli.merging.from_data import adamerging, frank_wolfe, learning
from osrm_cli.merging.from_data.adamerging import LearnedWeights
from osrm_cli.merging.from_data.fisher import FisherInformation
from osrm_cli.merging.from_data.learning import LearnedFactors
from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.sequential import SequentialTargets
from osrm_cli.merging.from_data.single_moments import SingleMoments
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import LayerData, NoLayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.text.completions import chat_template_record
from osrm_cli.progress import Progress

LEARNERS = {
    "weights": adamerging.learn_weights_by_entropy,
    "simplex-weights": frank_wolfe.learn_simplex_weights,
    "matching-weights": learning.learn_matching_weights,
}


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
        The plan to carry out, which has the weights and heads that the method learns, and the inputs of each layer.
    """
    if plan.method.data_statistic == "second-moments":  # collected while layers are merged
        return plan, SequentialMoments(models, plan)
    if plan.method.data_statistic == "single-moments":
        return plan, SingleMoments(models, plan)
    if plan.method.data_statistic == "cross-moments":
        return plan, SequentialTargets(models, plan)
    if plan.method.data_statistic == "fisher":
        shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
        return plan, FisherInformation(models, shapes, folder, progress)
    start = _merge_start(plan, models, folder, progress) if plan.method.data_statistic == "factors" else {}
    with progress(f"learn {plan.method.name}", plan.recipe.options["steps"], "steps") as advance:
        if plan.method.data_statistic == "factors":
            learned = learning.learn_factors(models, plan, start, advance)
            return _with_learned_heads(plan, models, learned), learned
        weights, record = LEARNERS[plan.method.data_statistic or ""](models, plan, advance)
    return plan.with_learned_weights(weights), LearnedWeights(record)


def _merge_start(plan: MergePlan, models: Sequence[TaskModel], folder: Path, progress: Progress) -> dict[str, LowRank]:
    """The factors to begin with: another method's, under the options that it shares."""
    start = plan.with_method(plan.recipe.options["start"])
    if start is None:
        return {}
    layer_data: LayerData = NoLayerData()
    if start.method.data_statistic:
        own = [model for model in models if not model.is_foreign]
        start, layer_data = gather_layer_data(start, own, folder, progress)
    results = {layer.name: layer.result for layer in merge_layers(start, layer_data, start.layers)}
    return {name: result for name, result in results.items() if isinstance(result, LowRank)}


def _with_learned_heads(plan: MergePlan, models: Sequence[TaskModel], learned: LearnedFactors) -> MergePlan:
    """The plan with what foreign adapters lacked on its base model: a head, or the template of its chats."""
    adapters = []
    for adapter, model in zip(plan.adapters, models, strict=True):
        if isinstance(adapter, ForeignAdapter):
            head = learned.heads.get(adapter.name)
            if head:
                adapter = adapter.with_head(head.read(), head.modules)
            if model.is_text:
                template = {"template": chat_template_record(model.backbone.tokenizer)}
                adapter = replace(adapter, record={**adapter.record, **template})
        adapters.append(adapter)
    return replace(plan, adapters=tuple(adapters))
