"""Training examples that a data-dependent method reads of each task, checked against its adapter."""

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CLASSIFIER_TASK_TYPES, TEXT_TASK_TYPES
from osrm_cli.adapters.task_data import (
    AdapterTaskSample,
    draw_adapter_examples,
    draw_adapter_texts,
)
from osrm_cli.errors import OsrmError
from osrm_cli.merging.foreign import teacher_of
from osrm_cli.merging.plan import Heads, MergePlan
from osrm_cli.models.peft_model import check_adapter_task_type
from osrm_cli.tasks.task import TaskSplit

# Statistics of layers' inputs, which need no head.
MOMENTS = ("second-moments", "single-moments", "cross-moments")
# Statistics that need no labels, nor a column for them; the last two compare what heads say.
TEXTS_ALONE = (*MOMENTS, "matching-weights", "factors")


def draw_merge_samples(plan: MergePlan, heads: Heads) -> list[AdapterTaskSample]:
    """Draw from every task's training split what the plan's method needs, in the order of the adapters.

    Args:
        plan: Its method has a data statistic.
        heads: Each task's head.

    Raises:
        OsrmError: If data, labels or a head are missing, or the method cannot treat a task.
    """
    for adapter in plan.adapters:
        _check_adapter_for_method(plan.method.name, teacher_of(adapter))
    options, statistic = plan.recipe.options, plan.method.data_statistic
    drawn = plan.adapters, plan.recipe.data, options["samples"], options["seed"], f"method {plan.method.name}"
    if statistic in TEXTS_ALONE:
        samples = draw_adapter_texts(*drawn, answered=options["completions"] == "given")
    else:
        samples = draw_adapter_examples(*drawn)
    for sample in samples:
        expected = TEXT_TASK_TYPES if sample.data.task.is_text else CLASSIFIER_TASK_TYPES
        check_adapter_task_type(sample.adapter, expected)
        if statistic == "weights":
            _check_has_entropy(plan.method.name, sample)
        if statistic not in MOMENTS and not sample.data.task.is_text:
            teacher = teacher_of(sample.adapter)
            head = heads[teacher.name] if teacher is sample.adapter else teacher.head_tensors()
            _check_head_for_method(plan.method.name, teacher, bool(head), sample.data)
    return samples


def _check_adapter_for_method(method: str, adapter: Adapter) -> None:
    if embedding := next((name for name, layer in adapter.layers.items() if layer.embedding), None):
        raise OsrmError(
            f"{adapter.source} adapts the embedding {embedding}, {method} takes linear layers only",
            "use another method, see osrm merge --list",
        )


def _check_has_entropy(method: str, sample: AdapterTaskSample) -> None:
    """Refuse tasks whose predictions' entropy does not say how good they are."""
    name, task = sample.adapter.name, sample.data.task
    if task.is_text:
        raise OsrmError(
            f"{method} minimises the entropy of predicted classes, task '{name}' is answered with text, in which a "
            "model that repeats itself has the least",
            "matched-weights learns such weights from the single models",
        )
    if task.regression:
        raise OsrmError(
            f"{method} minimises the entropy of predictions, task '{name}' predicts a number, which has none",
            f"leave {sample.adapter.source} out, or use another method, see osrm merge --list",
        )


def _check_head_for_method(method: str, adapter: Adapter, has_head: bool, data: TaskSplit) -> None:
    if data.task.is_multi_label:
        raise OsrmError(
            f"method {method} takes the outputs for probabilities of one class; task '{adapter.name}' has several "
            "labels a row",
            f"leave {adapter.source} out, or use another method, see osrm merge --list",
        )
    if not has_head:
        raise OsrmError(
            f"method {method} needs each task's predictions, {adapter.source} has no classification head",
            "merge adapters that carry their head, as 'osrm train' writes them",
        )
    recorded = (adapter.record.get("task") or {}).get("labels")
    labels = data.task.labels
    if recorded is not None and recorded != (None if labels is None else list(labels)):
        raise OsrmError(
            f"{adapter.source} was trained on the classes {recorded}, {data.source} has {list(labels or [])}",
            "give the data that it was trained on with --data",
        )
