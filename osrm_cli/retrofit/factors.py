"""New factors for the layers of existing adapters, and how far they change what the adapters compute."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.initialization.from_features import iter_layer_problems
from osrm_cli.initialization.objectives.table import Objective
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.retrofit import solvers

Factors = tuple[Adapter, str, LowRank]  # of one layer of one adapter, as they are stored: without the scaling


@dataclass(frozen=True)
class RetrofitChange:
    """How a retrofit changed one adapter's update, over all layers.

    Attributes:
        own: ``||(dW' - dW) x|| / ||dW x||``, root mean squares over the task's own inputs: 0 if nothing was lost.
        others: ``E ||dW' x||^2 / E ||dW x||^2`` over the other tasks' inputs: 0 if nothing is left of the interference.
    """

    own: float
    others: float


def retrofit_by_projection(
    adapters: Sequence[Adapter], features: FeatureSet, objective: Objective, seed: int, eps: float
) -> Iterator[Factors]:
    """A new A by an objective, and the B that fits the old update best: ``solvers.solve_projection``.

    The scaling takes no part: what is stored is fitted to what was stored.

    Raises:
        OsrmError: If the features cannot serve the objective.
    """
    choose = objective.load()
    by_task = {adapter.name: adapter for adapter in adapters}
    for problem in iter_layer_problems(features, list(by_task), objective, 1, seed, eps):
        adapter = by_task[problem.task]
        if layer := adapter.layers.get(problem.layer):
            A = choose(replace(problem, rank=layer.rank))
            update = adapter.lora_factors(problem.layer, torch.float64)
            yield adapter, problem.layer, solvers.solve_projection(update, A)


def retrofit_by_balancing(adapters: Sequence[Adapter], features: FeatureSet, mu: float) -> Iterator[Factors]:
    """``A_t C_t (C_t + mu sum_{u != t} C_u)^{-1}`` with B unchanged: ``solvers.solve_balanced``.

    Raises:
        OsrmError: If mu is negative, or all features are zero.
    """
    for inputs in features.layers():
        moments = {task: moment.dense() for task, moment in inputs.moments.items()}
        for adapter in adapters:
            layers = [layer for layer in inputs.layers if layer in adapter.layers]
            if not layers:
                continue
            old = [adapter.lora_factors(layer, torch.float64) for layer in layers]
            others = torch.stack([C for task, C in moments.items() if task != adapter.name]).sum(0)
            # Layers that share their inputs share the system of equations.
            stacked = torch.cat([factors.A for factors in old])
            new = solvers.solve_balanced(stacked, moments[adapter.name], others, mu, len(moments) - 1)
            for layer, factors, A in zip(layers, old, torch.split(new, [f.rank for f in old]), strict=True):
                yield adapter, layer, LowRank(factors.B, A)


def measure_retrofit_changes(
    new: Mapping[str, Mapping[str, LowRank]], adapters: Sequence[Adapter], features: FeatureSet
) -> dict[str, RetrofitChange]:
    """Compare new factors with the old ones on the inputs of a features folder.

    Args:
        new: By task and layer.
        adapters: The old ones.
        features: Features of every task, a statistic selected.
    """
    sums = {adapter.name: torch.zeros(4, dtype=torch.float64) for adapter in adapters}
    for inputs in features.layers():
        for adapter in adapters:
            own, others = inputs.moments[adapter.name], inputs.others(adapter.name)
            for layer in inputs.layers:
                if layer in adapter.layers:
                    old = adapter.delta(layer, torch.float64)
                    changed = new[adapter.name][layer].scaled(adapter.layers[layer].scaling)
                    sums[adapter.name] += torch.tensor(
                        _retrofit_energies(old, changed, own, others), dtype=torch.float64
                    )
    return {
        task: RetrofitChange(_retrofit_energy_ratio(s[0], s[1]) ** 0.5, _retrofit_energy_ratio(s[2], s[3]))
        for task, s in sums.items()
    }


def _retrofit_energies(old: LowRank, new: LowRank, own: SecondMoment, others: SecondMoment) -> list[float]:
    difference = LowRank(torch.cat([new.B, -old.B], dim=1), torch.cat([new.A, old.A]))
    return [float(x) for x in (own.energy(difference), own.energy(old), others.energy(new), others.energy(old))]


def _retrofit_energy_ratio(part: torch.Tensor, whole: torch.Tensor) -> float:
    return max(float(part / whole), 0.0) if whole > 0 else 0.0
