"""From features files to starts: an A for every layer of every task, and B at zero."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.initialization.from_features import iter_layer_problems, tasks_read
from osrm_cli.initialization.objectives.rank_budget import allocate_rank_budget, direction_scores
from osrm_cli.initialization.objectives.row_scale import rescale_rows
from osrm_cli.initialization.objectives.table import Objective
from osrm_cli.initialization.objectives.warnings import start_warnings
from osrm_cli.linalg.low_rank import LowRank

MAX_RANK_FACTOR = 2  # times the average rank: what --rank-budget gives one layer, as EVA's rho (arXiv:2410.07170)

Ranks = Mapping[str, Mapping[str, int]]  # by task and layer


@dataclass(frozen=True)
class InitConfig:
    """How starts are made.

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
        facts = {name: getattr(self, name) for name in ("statistic", "rank", "alpha", "a_scale", "eps", "seed")}
        spread = {} if self.rank_budget is None else {"rank_budget": self.rank_budget}
        return {"objective": self.objective.name, **facts, **spread}

    def config(self, features: FeatureSet, ranks: Mapping[str, int]) -> AdapterConfig:
        """PEFT's settings for a start; one that it does not know, such as 'osrm', it would refuse."""
        usual = max(ranks.values())
        alpha = self.scaling * usual
        others = {f"^{re.escape(layer)}": self.scaling * rank for layer, rank in ranks.items() if rank != usual}
        return AdapterConfig(
            base_model=features.base.name,
            revision=features.base.revision,
            task_type="SEQ_CLS",
            fan_in_fan_out=features.target_modules["fan_in_fan_out"],
            target_modules=tuple(features.target_modules["target_modules"]),
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            alpha_pattern=others,
        )


@dataclass
class InitializedAdapter:
    """One task's start.

    Attributes:
        factors: By layer; B is zero.
        concerns: Reasons to doubt it.
    """

    factors: dict[str, LowRank] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> dict[str, int]:
        """By layer."""
        return {layer: update.rank for layer, update in self.factors.items()}


def allocate_ranks(
    features: FeatureSet,
    tasks: Sequence[str],
    config: InitConfig,
    total: int,
    advance: Callable[[int], None],
) -> Ranks:
    """Each task's ranks by layer: the ``total`` directions that are worth most to the objective.

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
    most = min(MAX_RANK_FACTOR * math.ceil(total / len(layers)), *(layer.d_in for layer in layers.values()))
    spectra: dict[str, dict[str, torch.Tensor]] = {task: {} for task in tasks}
    choose, name = config.objective.load(), config.objective.name
    for problem in iter_layer_problems(
        features, tasks, config.objective, most, config.seed, config.eps, config.statistic
    ):
        spectra[problem.task][problem.layer] = direction_scores(name, choose(problem), problem)
        advance(1)
    return {task: allocate_rank_budget(found, total) for task, found in spectra.items()}


def initialize_layers(
    features: FeatureSet,
    tasks: Sequence[str],
    config: InitConfig,
    ranks: Ranks | None,
    advance: Callable[[int], None],
) -> dict[str, InitializedAdapter]:
    """Every task's start in one pass over the features.

    Args:
        features: Features of the tasks.
        tasks: Tasks to initialize.
        config: How.
        ranks: From ``spread``, or ``None`` for the recipe's in each layer.
        advance: Called with 1 after each layer.

    Raises:
        OsrmError: If the files cannot serve the objective.
    """
    row, choose = config.objective, config.objective.load()
    starts = {task: InitializedAdapter() for task in tasks}
    tokens = {
        task: sum(features.files[name].tokens for name in tasks_read(features, task, row) if name != task)
        for task in tasks
    }
    most = max(rank for task in ranks.values() for rank in task.values()) if ranks else int(config.rank)
    for problem in iter_layer_problems(features, tasks, row, most, config.seed, config.eps, config.statistic):
        if ranks:
            problem = replace(problem, rank=ranks[problem.task][problem.layer])
        start, own = starts[problem.task], features.files.get(problem.task)
        A = choose(problem)  # noqa: N806 - the papers' letters
        A = rescale_rows(A, config.a_scale, problem) if config.a_scale else A  # noqa: N806
        B = torch.zeros(problem.d_out or 0, len(A))  # noqa: N806
        start.factors[problem.layer] = LowRank(B, A)
        for doubt in start_warnings(row.name, problem, tokens[problem.task], own.tokens if own else None):
            if doubt not in start.warnings:
                start.warnings.append(doubt)
        advance(1)
    return starts
