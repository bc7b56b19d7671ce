"""From features files to what an objective is given, in one pass however many tasks are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import group_layers_by_input
from osrm_cli.features.features_file import GRADIENT, FeaturesFile
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.table import DEFAULT_OBJECTIVES, Objective, find_objective
from osrm_cli.linalg.second_moment import others_moment, stack_rows, total_moment

# Objectives that take rows as they come, as Eq. 3 of arXiv:2505.22934 does; the others give every task equal weight.
_ROWS_AS_STORED = ("osrm", "official")


def iter_layer_problems(
    files: Mapping[str, FeaturesFile],
    wanted: Sequence[str],
    objective: Objective,
    rank: int,
    seed: int,
    eps: float,
    statistic: str | None = None,
) -> Iterator[LayerProblem]:
    """Yield every layer's request for every wanted task; layers that share a statistic follow one another.

    Each tensor of each file is read once: what the other tasks amount to is the total minus the task's own.

    Args:
        files: Features files by task.
        wanted: Tasks to make starts for.
        objective: Decides what is read.
        rank: Rows of A.
        seed: The user's seed.
        eps: The ``eps`` of ``gevd``.
        statistic: Read this one rather than the objective's first choice.

    Raises:
        OsrmError: If the files cannot serve the objective.
    """
    statistic = choose_statistic(files, wanted, objective, statistic)
    served = {task: tasks_read(files, task, objective) for task in wanted}
    opened = [name for name in files if any(name in read for read in served.values())]
    names = _read(files, wanted, objective) if statistic else []
    layers = next(iter(files.values())).layers
    readers = {name: files[name].reader() for name in opened}
    for group in group_layers_by_input(layers, [files[name] for name in names]):
        found = {name: readers[name].read(group[0], statistic or "") for name in names}
        missed = {name: readers[name].max_unseen_share(group[0], statistic or "") for name in names}
        summed = statistic == "second-moment" and objective.needs_others
        total = total_moment(found.values()) if summed else None
        for task, read in served.items():
            given = _layer_statistics(found, total, task, read, objective, statistic)
            others = [missed[name] for name in read if name in missed and name != task]
            given["others_sketch_error"] = sum(others) / max(len(others), 1)
            for layer in group:
                if objective.needs_gradient:
                    given["gradient"] = readers[task].read(layer, GRADIENT)
                d_in, d_out = layers[layer].d_in, layers[layer].d_out
                yield LayerProblem(rank, d_in, layer, task, seed, d_out=d_out, eps=eps, **given)


def tasks_read(files: Mapping[str, FeaturesFile], task: str, objective: Objective) -> list[str]:
    """Tasks whose features serve one task's start.

    Raises:
        OsrmError: If there are none of the kind that the objective needs.
    """
    others = [name for name in files if name != task] if objective.needs_others else []
    if objective.needs_others and not others:
        raise OsrmError(
            f"{next(iter(files.values())).path.parent} holds no features of a task other than '{task}'",
            "collect the other tasks first: osrm collect --task OTHER",
        )
    own = objective.needs_own or objective.needs_gradient
    if own and task not in files:
        raise OsrmError(
            f"objective '{objective.name}' needs the features of '{task}' itself", f"osrm collect --task {task}"
        )
    return [name for name in files if name in others or (own and name == task)]


def _read(files: Mapping[str, FeaturesFile], tasks: Sequence[str], objective: Objective) -> list[str]:
    """Tasks of whose files a statistic is read, rather than a gradient alone."""
    given = replace(objective, needs_gradient=False)
    read = {name for task in tasks for name in tasks_read(files, task, given)}
    return [name for name in files if name in read]


def choose_statistic(
    files: Mapping[str, FeaturesFile], tasks: Sequence[str], objective: Objective, wanted: str | None = None
) -> str | None:
    """The statistic that serves the objective best, or the wanted one, among those that every file read holds.

    Args:
        files: Features files by task.
        tasks: Tasks to make starts for.
        objective: The objective.
        wanted: What the user chose.

    Raises:
        OsrmError: If there is none.
    """
    held = {name: set(features.statistics) for name, features in files.items()}
    read = _read(files, tasks, objective)
    common = set.intersection(*(held[name] for name in read)) if read else set()
    try:
        return objective.choose_statistic(tuple(sorted(common)), wanted)
    except OsrmError:
        # Names the file that lacks what the others have, rather than blame them all.
        usual = max(held.values(), key=list(held.values()).count)
        odd = next((files[name] for name in read if not held[name] >= usual), None)
        if odd is None:
            raise
        raise OsrmError(
            f"{odd.path} holds {', '.join(odd.statistics)}, the other features files {', '.join(sorted(usual))}",
            f"collect '{odd.task}' again with the --statistic of the others",
        ) from None


def default_objective(files: Mapping[str, FeaturesFile], tasks: Sequence[str], wanted: str | None = None) -> Objective:
    """The first of the default objectives that the features serve, see ``serving``; if none, the last."""
    *better, last = map(find_objective, DEFAULT_OBJECTIVES)
    for row in better:
        try:
            choose_statistic(files, tasks, row, wanted)
        except OsrmError:
            continue
        return row
    return last


def _layer_statistics(
    found: Mapping[str, torch.Tensor],
    total: torch.Tensor | None,
    task: str,
    read: Sequence[str],
    objective: Objective,
    statistic: str | None,
) -> dict[str, Any]:
    """One layer's features as a request has them: the other tasks', and the task's own where it is read."""
    own = found.get(task) if task in read else None
    others = [found[name] for name in read if name != task and statistic]
    given: dict[str, torch.Tensor | None] = {}
    if statistic == "second-moment":
        given = {"out_moment": None if total is None else _others_moment(total, found, task), "own_moment": own}
    elif statistic:
        balanced = statistic.startswith("sketch") or objective.name not in _ROWS_AS_STORED
        rows = stack_rows(others, balanced) if others else None
        given = {"out_rows": rows, "own_rows": None if own is None else own.reshape(-1, own.shape[-1])}
    return {name: tensor for name, tensor in given.items() if tensor is not None}


def _others_moment(total: torch.Tensor, found: Mapping[str, torch.Tensor], task: str) -> torch.Tensor:
    """``C_out``: the total without the task's own share, where that is in it."""
    return others_moment(total, found[task], len(found)) if task in found else total / len(found)
