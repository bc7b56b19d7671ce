"""What a merging method needs of the tasks' data: each task's model, and a statistic, by ``Method.data_statistic``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from osrm_cli.adapters.task_data import AdapterTaskSample
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.foreign import ForeignAdapter
from osrm_cli.merging.from_data import adamerging, frank_wolfe, learning
from osrm_cli.merging.from_data.adamerging import LearnedWeights
from osrm_cli.merging.from_data.fisher import FisherInformation
from osrm_cli.merging.from_data.learning import LearnedFactors
from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.sequential import SequentialTargets
from osrm_cli.merging.from_data.single_moments import SingleMoments
from osrm_cli.merging.from_data.task_models import TaskModel, load_classifier_task_model, load_writer_task_model
from osrm_cli.merging.from_data.teachers import TeacherModels
from osrm_cli.merging.layer_data import LayerData, NoLayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.plan import MergedModules, MergePlan
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.completions import chat_template_record
from osrm_cli.progress import Progress

LEARNERS = {
    "weights": adamerging.learn_weights_by_entropy,
    "simplex-weights": frank_wolfe.learn_simplex_weights,
    "matching-weights": learning.learn_matching_weights,
}


def load_task_models(
    plan: MergePlan,
    samples: Sequence[AdapterTaskSample],
    saved: MergedModules,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> list[TaskModel]:
    """Load the base model once for each kind of task, in float32, and put every task's head on it.

    The single adapters of text tasks write their completions here, unless the given ones are to be read.

    Args:
        plan: Its layers are those of the model.
        samples: The tasks' examples.
        saved: Each task's head, and what the adapters have trained as a whole.
        folder: The base model's folder.
        device: Device of the model.
        progress: Shows a bar while answers are written.

    Raises:
        OsrmError: If an adapter or its head does not fit the base model, or an example cannot be used or is longer than
            its positions.
    """
    backbones: dict[bool, Backbone | TextBackbone] = {}
    for is_text in sorted({sample.data.task.is_text for sample in samples}):
        backbones[is_text] = TextBackbone.load(folder, device) if is_text else Backbone.load(folder, device)
    if len(backbones) == 2 and backbones[True].model.config.is_encoder_decoder:
        raise OsrmError(
            f"method {plan.method.name} cannot read classifiers and writers on one encoder-decoder, which call its "
            "layers differently",
            "merge them apart, or use a method that reads features or the adapters alone, see osrm merge --list",
        )
    for backbone in backbones.values():
        backbone.check_layers(plan.shapes)
        backbone.replace_values(saved.values, saved.rows)
        backbone.check_max_length(max(sample.max_length for sample in samples))
    own = plan.recipe.options.get("completions") == "own"
    teachers = TeacherModels(device, own, progress)
    models = []
    for sample in samples:
        backbone = backbones[sample.data.task.is_text]
        if isinstance(sample.adapter, ForeignAdapter):
            models.append(teachers.load_student(backbone, sample, sample.adapter, plan.recipe.options["seed"]))
        elif isinstance(backbone, TextBackbone):
            models.append(load_writer_task_model(backbone, sample, own, progress))
        else:
            models.append(load_classifier_task_model(backbone, sample, saved.heads[sample.adapter.name]))
    return models


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
