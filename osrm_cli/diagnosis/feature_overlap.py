"""How far tasks share their directions, layer by layer, and whether an initialization can separate them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.linalg.subspaces import principal_angles
from osrm_cli.progress import Advance

MIN_USEFUL_GAIN = 2.0  # of own energy over the others': the six writers of docs/results.md have 2.1 to 3.2
_ROUNDING = 1e-9  # of a share


@dataclass(frozen=True)
class TaskSpace:
    """One task in one layer, relative to the other tasks' principal subspace.

    Attributes:
        effective_rank: Of the task's own inputs.
        main_rank: Dimensions of its own principal subspace.
        others_rank: Dimensions of the principal subspace of all the others together.
        free: Share of the task's own energy outside the others' principal subspace.
        leak: Share of the others' energy outside it: at most ``1 - energy``.
    """

    effective_rank: float
    main_rank: int
    others_rank: int
    free: float
    leak: float


@dataclass(frozen=True)
class TaskPair:
    """Two tasks in one layer.

    Attributes:
        share: Share of the first one's energy in the second one's principal subspace.
        overlap: Mean squared cosine of the principal angles between the two subspaces: 1 if one contains the other.
        chance: The same for random subspaces of these dimensions.
        angles: Smallest, median and largest principal angle in degrees.
    """

    share: float
    overlap: float
    chance: float
    angles: Sequence[float]


@dataclass(frozen=True)
class LayerGroup:
    """One input in the model, and the layers that read it.

    Attributes:
        layers: Their names.
        d_in: Its width.
        rooms: By task.
        pairs: By task and other task.
    """

    layers: Sequence[str]
    d_in: int
    rooms: Mapping[str, TaskSpace]
    pairs: Mapping[str, Mapping[str, TaskPair]]


@dataclass(frozen=True)
class TaskOutlook:
    """Whether an initialization can help one task.

    Attributes:
        effective_rank: Mean over the layers.
        free: Mean over the layers of ``TaskSpace.free``.
        gain: Ratio of the task's own energy to the others' outside the others' principal subspace: ``free`` over
            ``leak``; ``None`` where the others have none there, or features have no spread.
        helps: Whether the gain is at least ``MIN_USEFUL_GAIN``; ``None`` where it is unknown.
        least: The layer with the lowest ``free``, and that.
        most: The layer with the highest.
    """

    effective_rank: float
    free: float
    gain: float | None
    helps: bool | None
    least: tuple[str, float]
    most: tuple[str, float]


def measure_overlap(features: FeatureSet, energy: float, advance: Advance) -> list[LayerGroup]:
    """Compare the inputs of two tasks or more, layer by layer.

    Args:
        features: Their features.
        energy: Share of the energy that a principal subspace holds.
        advance: Called with 1 after each input.

    Raises:
        OsrmError: If there is only one task.
    """
    groups = []
    for inputs in features.layers():
        tasks, moments = list(inputs.moments), list(inputs.moments.values())
        spectra = [moment.spectrum() for moment in moments]
        spaces = [spectrum.main_space(energy) for spectrum in spectra]
        rooms = {}
        for own, task in enumerate(tasks):
            others = inputs.others(task)
            principal = others.spectrum().main_space(energy)
            free, leak = 1 - moments[own].share(principal), 1 - others.share(principal)
            rooms[task] = TaskSpace(spectra[own].effective_rank(), len(spaces[own]), len(principal), free, leak)
        groups.append(LayerGroup(inputs.layers, spaces[0].shape[1], rooms, _compare_task_pairs(tasks, moments, spaces)))
        advance(1)
    return groups


def _compare_task_pairs(
    tasks: list[str], moments: list[SecondMoment], spaces: list[torch.Tensor]
) -> dict[str, dict[str, TaskPair]]:
    pairs: dict[str, dict[str, TaskPair]] = {task: {} for task in tasks}
    for i, one in enumerate(tasks):
        for j, other in enumerate(tasks[:i]):
            angles = principal_angles(spaces[i], spaces[j])
            overlap = float(angles.cos().square().mean())
            chance = max(len(spaces[i]), len(spaces[j])) / spaces[i].shape[1]
            degrees = [math.degrees(angle) for angle in (angles[0], angles.median(), angles[-1])]
            pairs[one][other] = TaskPair(moments[i].share(spaces[j]), overlap, chance, degrees)
            pairs[other][one] = TaskPair(moments[j].share(spaces[i]), overlap, chance, degrees)
    return {task: dict(sorted(row.items())) for task, row in pairs.items()}


def task_outlooks(groups: Sequence[LayerGroup], spread: bool = True) -> dict[str, TaskOutlook]:
    """Each task's outlook over all layers.

    Args:
        groups: All of them.
        spread: Whether the features have more than one direction for each task.
    """
    outlooks = {}
    for task in groups[0].rooms:
        rooms = [group.rooms[task] for group in groups]
        free, leak = (_mean_overlap([getattr(room, name) for room in rooms]) for name in ("free", "leak"))
        gain = free / leak if spread and leak > _ROUNDING else None
        order = sorted(((group.layers[0], group.rooms[task].free) for group in groups), key=lambda pair: pair[1])
        helps = None if gain is None else gain >= MIN_USEFUL_GAIN
        outlooks[task] = TaskOutlook(
            _mean_overlap([r.effective_rank for r in rooms]), free, gain, helps, order[0], order[-1]
        )
    return outlooks


def mean_overlap_shares(groups: Sequence[LayerGroup]) -> dict[str, dict[str, float]]:
    """``TaskPair.share``, mean over the layers, by task and task; 1 for a task itself."""
    tasks = list(groups[0].rooms)
    return {
        one: {
            other: 1.0 if one == other else _mean_overlap([g.pairs[one][other].share for g in groups])
            for other in tasks
        }
        for one in tasks
    }


def _mean_overlap(values: Sequence[float]) -> float:
    return sum(values) / len(values)
