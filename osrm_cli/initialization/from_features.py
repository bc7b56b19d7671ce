"""From features to layer problems, in one pass for any number of tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.table import DEFAULT_OBJECTIVES, Objective, find_objective

# Objectives that take rows as they are stored, as Eq. 3 of arXiv:2505.22934 does; the others weigh every task the same.
_ROWS_AS_STORED = ("osrm", "official")


def iter_layer_problems(
    features: FeatureSet,
    tasks: Sequence[str],
    objective: Objective,
    rank: int,
    seed: int,
    eps: float,
    statistic: str | None = None,
) -> Iterator[LayerProblem]:
    """Yield every layer's problem for every task; layers that read the same input follow one another.

    Args:
        features: Features of these tasks and of others.
        tasks: Tasks to initialize.
        objective: Decides what is read.
        rank: Rows of A.
        seed: The user's seed.
        eps: The ``eps`` of ``gevd``.
        statistic: Read this one rather than the objective's first choice.

    Raises:
        OsrmError: If the features cannot serve the objective.
    """
    for task in tasks:
        tasks_read_to_initialize(features, task, objective)  # raises, before anything is read
    statistic = choose_init_statistic(features, tasks, objective, statistic)
    read = _tasks_read_for_statistic(features, tasks, objective) if statistic else []
    weighted = objective.name not in _ROWS_AS_STORED or (statistic or "").startswith("sketch")
    for inputs in features.with_statistics(dict.fromkeys(read, statistic or "")).layers(per_token=False):
        for task in tasks:
            others = inputs.others(task, weighted) if statistic and objective.needs_others else None
            error = inputs.others_unseen(task) if others else 0.0
            own = inputs.moments.get(task) if objective.needs_own else None
            for layer in inputs.layers:
                gradient = inputs.gradient(task, layer) if objective.needs_gradient else None
                widths = features.target_layers[layer]
                yield LayerProblem(
                    rank, widths.d_in, layer, task, seed, widths.d_out, others, own, error, gradient, eps
                )


def tasks_read_to_initialize(features: FeatureSet, task: str, objective: Objective) -> list[str]:
    """Tasks whose features are read to initialize one task.

    Raises:
        OsrmError: If there are none of the kind that the objective needs.
    """
    others = features.other_tasks(task) if objective.needs_others else []
    own = objective.needs_own or objective.needs_gradient
    if own:
        features.require_task(task, f"objective '{objective.name}'")
    return [name for name in features.tasks if name in others or (own and name == task)]


def _tasks_read_for_statistic(features: FeatureSet, tasks: Sequence[str], objective: Objective) -> list[str]:
    """Tasks of whose features a statistic is read, rather than a gradient alone."""
    without_gradient = replace(objective, needs_gradient=False)
    read = {name for task in tasks for name in tasks_read_to_initialize(features, task, without_gradient)}
    return [name for name in features.tasks if name in read]


def choose_init_statistic(
    features: FeatureSet, tasks: Sequence[str], objective: Objective, statistic: str | None = None
) -> str | None:
    """The statistic that serves the objective best, or the named one, among those that every file read holds.

    Args:
        features: All features.
        tasks: Tasks to initialize.
        objective: The objective.
        statistic: What the user chose, if anything.

    Raises:
        OsrmError: If there is none.
    """
    names = {task: set(file.statistics) for task, file in features.files.items()}
    read = _tasks_read_for_statistic(features, tasks, objective)
    common = set.intersection(*(names[task] for task in read)) if read else set()
    try:
        return objective.choose_statistic(tuple(sorted(common)), statistic)
    except OsrmError:
        # Names the file that lacks what the others have, rather than blame them all.
        usual = max(names.values(), key=list(names.values()).count)
        odd = next((features.files[task] for task in read if not names[task] >= usual), None)
        if odd is None:
            raise
        raise OsrmError(
            f"{odd.path} holds {', '.join(odd.statistics)}, the other features files {', '.join(sorted(usual))}",
            f"collect '{odd.task}' again with the --statistic of the others",
        ) from None


def default_objective(features: FeatureSet, tasks: Sequence[str], statistic: str | None = None) -> Objective:
    """The first of the default objectives that the features can serve, see ``choose_init_statistic``, or the last."""
    *better, last = map(find_objective, DEFAULT_OBJECTIVES)
    for objective in better:
        try:
            choose_init_statistic(features, tasks, objective, statistic)
        except OsrmError:
            continue
        return objective
    return last
