"""Training examples that a data-dependent method reads of each task, checked against its adapter."""

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import TEXT_TASK_TYPES
from osrm_cli.adapters.task_data import TaskSample, data_source, draw_texts
from osrm_cli.errors import OsrmError
from osrm_cli.merging.plan import Heads, MergePlan
from osrm_cli.tasks.loading import draw_examples, load_split
from osrm_cli.tasks.task import TaskSplit

TEXTS_ALONE = ("cross-moments", "matching-weights", "factors")  # statistics that need no labels, nor a column for them


def draw_for_plan(plan: MergePlan, heads: Heads) -> list[TaskSample]:
    """Draw from every task's training split what the plan's method needs, in the order of the adapters.

    Args:
        plan: Its method has a data statistic.
        heads: Each task's head.

    Raises:
        OsrmError: If data, labels or a head are missing, or the method cannot treat a task.
    """
    for adapter in plan.adapters:
        _check_adapter(plan.method.name, adapter)
    options, statistic = plan.recipe.options, plan.method.data_statistic
    if statistic not in TEXTS_ALONE:
        return [_draw_sample(plan, adapter, bool(heads[adapter.name])) for adapter in plan.adapters]
    purpose = f"method {plan.method.name}"
    samples = draw_texts(plan.adapters, plan.recipe.data, options["samples"], options["seed"], purpose)
    if statistic != "cross-moments":
        for sample in samples:
            _check_head(plan.method.name, sample.adapter, bool(heads[sample.adapter.name]), sample.data)
    return samples


def _check_adapter(method: str, adapter: Adapter) -> None:
    if embedding := next((name for name, layer in adapter.layers.items() if layer.embedding), None):
        raise OsrmError(
            f"{adapter.source} adapts the embedding {embedding}, {method} takes linear layers only",
            "use another method, see osrm merge --list",
        )
    if adapter.config.task_type in TEXT_TASK_TYPES:
        raise OsrmError(
            f"method {method} reads the texts of classifiers, {adapter.source} is for {adapter.config.task_type}",
            "use a method that reads features or the adapters alone, see osrm merge --list",
        )


def _draw_sample(plan: MergePlan, adapter: Adapter, has_head: bool) -> TaskSample:
    method = plan.method.name
    source = data_source(adapter, plan.recipe.data, f"method {method}")
    options = plan.recipe.options
    data = draw_examples(load_split(adapter.name, source, "train"), options["samples"], options["seed"])
    if plan.method.data_statistic != "second-moments":
        _check_head(method, adapter, has_head, data)
    if plan.method.data_statistic == "weights" and data.task.regression:
        raise OsrmError(
            f"{method} minimises the entropy of predictions, task '{adapter.name}' predicts a number, which has none",
            f"leave {adapter.source} out, or use another method, see osrm merge --list",
        )
    return TaskSample.of(adapter, data, source)


def _check_head(method: str, adapter: Adapter, has_head: bool, data: TaskSplit) -> None:
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
