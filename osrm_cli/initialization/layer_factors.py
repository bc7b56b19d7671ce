"""From features to factors: an A for every layer of every task, and B at zero."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.initialization.from_features import iter_layer_problems, tasks_read_to_initialize
from osrm_cli.initialization.objectives.rank_budget import allocate_rank_budget, direction_scores
from osrm_cli.initialization.objectives.row_scale import rescale_initial_rows
from osrm_cli.initialization.objectives.table import Objective
from osrm_cli.initialization.objectives.warnings import start_warnings
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.progress import Advance

MAX_RANK_FACTOR = 2  # times the average rank: what --rank-budget gives one layer, as EVA's rho (arXiv:2410.07170)

Ranks = Mapping[str, Mapping[str, int]]  # by task and layer


@dataclass(frozen=True)
class InitConfig:
    """How adapters are initialized.

    Attributes:
        objective: How A is chosen, and what is read for it.
        statistic: What it is chosen from.
        rank: Rows of A in each layer, on average where there is a budget.
        rank_budget: Sum of the ranks of all layers, or ``None`` for the same rank in each.
        alpha: ``lora_alpha`` of a layer of that rank; twice the rank if ``None``.
        a_scale: Size of A, or ``None`` as the objective has it.
        eps: The ``eps`` of ``gevd``.
        seed: Of every random draw.
    """

    objective: Objective
    statistic: str | None
    rank: float
    rank_budget: int | None
    alpha: float | None
    a_scale: str | None
    eps: float
    seed: int

    @property
    def scaling(self) -> float:
        """``lora_alpha / r``, the same in every layer."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def record(self) -> dict[str, object]:
        """The settings as ``osrm.json`` has them."""
        settings = {name: getattr(self, name) for name in ("statistic", "rank", "alpha", "a_scale", "eps", "seed")}
        budget = {} if self.rank_budget is None else {"rank_budget": self.rank_budget}
        return {"objective": self.objective.name, **settings, **budget}

    def adapter_config(self, features: FeatureSet, task: str, ranks: Mapping[str, int]) -> AdapterConfig:
        """PEFT's settings for an initialized adapter; PEFT would refuse an initialization of a name like 'osrm'."""
        highest = max(ranks.values())
        alpha = self.scaling * highest
        others = {f"^{re.escape(layer)}": self.scaling * rank for layer, rank in ranks.items() if rank != highest}
        return AdapterConfig(
            base_model=features.base.name,
            revision=features.base.revision,
            task_type=features.task_type(task),
            fan_in_fan_out=features.target_modules["fan_in_fan_out"],
            target_modules=tuple(features.target_modules["target_modules"]),
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            alpha_pattern=others,
        )


@dataclass
class InitializedAdapter:
    """One task's initialized adapter.

    Attributes:
        factors: By layer; B is zero.
        warnings: Reasons to doubt it.
    """

    factors: dict[str, LowRank] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by layer."""
        return {layer: update.rank for layer, update in self.factors.items()}


def allocate_ranks(
    features: FeatureSet, tasks: Sequence[str], config: InitConfig, total: int, advance: Advance
) -> Ranks:
    """Each task's ranks by layer: the ``total`` directions with the highest scores.

    Args:
        features: Features of the tasks.
        tasks: Tasks to initialize.
        config: How.
        total: Sum of the ranks.
        advance: Called with 1 after each layer.

    Raises:
        OsrmError: If the budget does not fit the layers.
    """
    layers = features.target_layers
    highest = min(MAX_RANK_FACTOR * math.ceil(total / len(layers)), *(layer.d_in for layer in layers.values()))
    scores: dict[str, dict[str, torch.Tensor]] = {task: {} for task in tasks}
    choose, name = config.objective.load(), config.objective.name
    for problem in iter_layer_problems(
        features, tasks, config.objective, highest, config.seed, config.eps, config.statistic
    ):
        scores[problem.task][problem.layer] = direction_scores(name, choose(problem), problem)
        advance(1)
    return {task: allocate_rank_budget(by_layer, total) for task, by_layer in scores.items()}


def initialize_layers(
    features: FeatureSet, tasks: Sequence[str], config: InitConfig, ranks: Ranks | None, advance: Advance
) -> dict[str, InitializedAdapter]:
    """Every task's adapter in one pass over the features.

    Args:
        features: Features of the tasks.
        tasks: Tasks to initialize.
        config: How.
        ranks: From ``allocate_ranks``, or ``None`` for the same rank in each layer.
        advance: Called with 1 after each layer.

    Raises:
        OsrmError: If the features cannot serve the objective.
    """
    objective, choose = config.objective, config.objective.load()
    adapters = {task: InitializedAdapter() for task in tasks}
    others_tokens = {
        task: sum(
            features.files[name].tokens for name in tasks_read_to_initialize(features, task, objective) if name != task
        )
        for task in tasks
    }
    highest = max(rank for task in ranks.values() for rank in task.values()) if ranks else int(config.rank)
    for problem in iter_layer_problems(features, tasks, objective, highest, config.seed, config.eps, config.statistic):
        if ranks:
            problem = replace(problem, rank=ranks[problem.task][problem.layer])
        adapter, own = adapters[problem.task], features.files.get(problem.task)
        A = choose(problem)  # noqa: N806 - the papers' letters
        A = rescale_initial_rows(A, config.a_scale, problem) if config.a_scale else A  # noqa: N806
        B = torch.zeros(problem.d_out or 0, len(A))  # noqa: N806
        adapter.factors[problem.layer] = LowRank(B, A)
        own_tokens = own.tokens if own else None
        for warning in start_warnings(objective.name, problem, others_tokens[problem.task], own_tokens):
            if warning not in adapter.warnings:
                adapter.warnings.append(warning)
        advance(1)
    return adapters
