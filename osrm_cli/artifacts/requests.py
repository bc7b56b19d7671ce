"""From features files to what an objective is given, in one pass however many tasks are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from osrm_cli.artifacts.features import Features
from osrm_cli.errors import OsrmError
from osrm_cli.maths.objectives import Objective
from osrm_cli.maths.request import Request


def requests(
    files: Mapping[str, Features], wanted: Sequence[str], objective: Objective, rank: int, seed: int, eps: float
) -> Iterator[Request]:
    """Yield every layer's request for every wanted task.

    Each file's statistic of each layer is read once: what the other tasks amount to is the total minus the task's own.

    Args:
        files: Features files by task.
        wanted: Tasks to make starts for.
        objective: Decides what is read.
        rank: Rows of A.
        seed: The user's seed.
        eps: The ``eps`` of ``gevd``.

    Raises:
        OsrmError: If the files cannot serve the objective.
    """
    first = next(iter(files.values()))
    statistic = _statistic(files, objective)
    read = _needed(files, wanted, objective)
    with ExitStack() as stack:
        readers = {task: stack.enter_context(files[task].reader()) for task in read}
        for name, layer in first.layers.items():
            found = {task: reader.read(name, statistic) for task, reader in readers.items() if statistic}
            if statistic == "second-moment":
                found = {task: moment / moment.trace() for task, moment in found.items()}
                total = torch.stack(list(found.values())).sum(0)
            for task in wanted:
                request = Request(rank, layer.d_in, name, task, seed, d_out=layer.d_out, eps=eps)
                own, others = found.get(task), [x for other, x in found.items() if other != task]
                if statistic == "second-moment":
                    rest = total if own is None else total - own
                    yield replace(request, out_moment=rest / len(others) if others else None, own_moment=own)
                elif statistic:
                    rows = torch.cat([torch.atleast_2d(x) for x in others]) if others else None
                    yield replace(request, out_rows=rows, own_rows=None if own is None else torch.atleast_2d(own))
                else:
                    yield request


def _statistic(files: Mapping[str, Features], objective: Objective) -> str | None:
    """The statistic that serves the objective best among those that every file holds."""
    held = [set(features.statistics) for features in files.values()]
    common = set.intersection(*held)
    if not common:
        odd = next(f for f, names in zip(files.values(), held, strict=True) if names != held[0])
        raise OsrmError(
            f"{odd.path} holds {', '.join(odd.statistics)}, which another features file lacks",
            "collect all tasks with the same --statistic",
        )
    return objective.serve(tuple(sorted(common)))


def _needed(files: Mapping[str, Features], wanted: Sequence[str], objective: Objective) -> list[str]:
    """Tasks whose files have to be read."""
    others = {task for one in wanted for task in files if task != one}
    if objective.needs_others and (not others or (len(files) == 1 and set(files) == set(wanted))):
        folder = next(iter(files.values())).path.parent
        raise OsrmError(
            f"{folder} holds no features of a task other than '{wanted[0]}'",
            "collect the other tasks first: osrm collect --task OTHER",
        )
    for task in wanted:
        if objective.needs_own and task not in files:
            raise OsrmError(
                f"objective '{objective.name}' needs the features of '{task}' itself", f"osrm collect --task {task}"
            )
    needed = (others if objective.needs_others else set()) | (set(wanted) if objective.needs_own else set())
    return [task for task in files if task in needed]
