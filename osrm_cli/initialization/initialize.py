"""Initialize adapters: ``features/*.safetensors`` -> ``starts/<task>/``."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from osrm_cli.adapters.writer import write_adapter
from osrm_cli.errors import OsrmError, check_number
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.statistics.table import STATISTICS
from osrm_cli.initialization.from_features import choose_init_statistic, default_objective, tasks_read_to_initialize
from osrm_cli.initialization.layer_factors import (
    InitConfig,
    InitializedAdapter,
    allocate_ranks,
    initialize_layers,
)
from osrm_cli.initialization.objectives.rank_budget import check_objective_spectrum
from osrm_cli.initialization.objectives.table import Objective, find_objective
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.tasks.task import check_task_name

DEFAULT_RANK = 8


@dataclass(frozen=True)
class InitializedAdapters:
    """What ``initialize_adapters`` did.

    Attributes:
        paths: Folder of each task that was written, or would be.
        objective: Name of the objective.
        layers: Number of layers.
        read: Features files that are read for each task.
        notes: Tasks that may be misspelled.
        warnings: By task, reasons to doubt the result; empty under ``dry_run``.
    """

    paths: Mapping[str, Path]
    objective: str
    layers: int
    read: Mapping[str, Sequence[Path]]
    notes: Sequence[str]
    warnings: dict[str, list[str]] = field(default_factory=dict)


def initialize_adapters(
    tasks: Sequence[str] = (),
    features: Path | str = "features",
    *,
    rank: int | None = None,
    rank_budget: int | None = None,
    alpha: float | None = None,
    objective: str | None = None,
    statistic: str | None = None,
    a_scale: str | None = None,
    eps: float = 1e-3,
    seed: int = 0,
    out: Path | str = "starts",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> InitializedAdapters:
    """Initialize adapters that interfere little with the other tasks, in one pass over the features.

    The folders of all tasks are written, or none.

    Args:
        tasks: Tasks to initialize; all that there are features of by default.
        features: Folder of features files.
        rank: Rank of every layer; 8 by default.
        rank_budget: Sum of the ranks instead, given to the layers whose directions score highest.
        alpha: ``lora_alpha``, at the average rank; twice that by default.
        objective: How A is chosen; by default the first of ``DEFAULT_OBJECTIVES`` that the features can serve.
        statistic: What to choose A from; the objective's first choice by default.
        a_scale: ``orthonormal``, ``kaiming``, ``gaussian``, ``match-output`` or a number: length of A's rows.
        eps: Of the objective ``gevd``: weight of the identity against interference.
        seed: Of every random draw.
        out: Folder to write ``<task>/`` to.
        overwrite: Replace folders that exist.
        dry_run: Check everything and write nothing.
        progress: Draws bars.

    Raises:
        OsrmError: If features are missing or damaged, or cannot serve the objective, or an option has no valid value.

    Example:
        >>> from osrm_cli import initialize_adapters
        >>> initialize_adapters(["mini-inference", "mini-mood"], rank=4).paths["mini-mood"]
        PosixPath('starts/mini-mood')
    """
    chosen = find_objective(objective) if objective else None
    if rank is not None and rank_budget is not None:
        raise OsrmError("--rank and --rank-budget exclude one another", "give one of them")
    if alpha is not None:
        check_number("alpha", alpha, 1e-6, 1e6)
    check_number("eps", eps, 0)
    feature_set = FeatureSet.open(features)
    names = list(tasks) or feature_set.tasks
    row = _objective_with_scale_needs(chosen or default_objective(feature_set, names, statistic), a_scale)
    if rank_budget is not None:
        check_objective_spectrum(row.name)
    for task in names:
        check_task_name(task)
    paths = {task: Path(out) / task for task in names}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    statistic = choose_init_statistic(feature_set, names, row, statistic)
    read = {
        task: [feature_set.files[name].path for name in tasks_read_to_initialize(feature_set, task, row)]
        for task in names
    }
    layers = len(feature_set.target_layers)
    result = InitializedAdapters(paths, row.name, layers, read, _note_starts_without_features(names, feature_set))
    if dry_run:
        return result
    average = (rank or DEFAULT_RANK) if rank_budget is None else rank_budget / layers
    config = InitConfig(row, statistic, average, rank_budget, alpha, a_scale, eps, seed)
    ranks, steps = None, layers * len(paths)
    if rank_budget is not None:
        with progress("ranks", steps, "layers") as advance:
            ranks = allocate_ranks(feature_set, list(paths), config, rank_budget, advance)
    with progress(f"init {row.name}", steps, "layers") as advance:
        adapters = initialize_layers(feature_set, list(paths), config, ranks, advance)
    with ExitStack() as stages:
        for task, path in paths.items():
            stage = stages.enter_context(atomic.write_folder(path, overwrite))
            _write_start(stage, task, adapters[task], feature_set, config)
    result.warnings.update({task: adapter.warnings for task, adapter in adapters.items()})
    return result


def _objective_with_scale_needs(objective: Objective, a_scale: str | None) -> Objective:
    """The objective, with what the scale needs to read beside it."""
    if a_scale == "match-output":
        kinds = objective.statistics or tuple(statistic.kind for statistic in STATISTICS)
        return replace(objective, needs_own=True, statistics=kinds)
    return objective


def _note_starts_without_features(tasks: Sequence[str], features: FeatureSet) -> list[str]:
    """Tasks without features of their own, which may be meant so, or be misspelled."""
    notes = []
    for task in tasks:
        if task not in features.files:
            near = difflib.get_close_matches(task, features.tasks, n=1)
            meant = f"did you mean '{near[0]}'?" if near else "its start avoids all the features that are there"
            notes.append(f"there are no features of a task '{task}': {meant}")
    return notes


def _write_start(stage: Path, task: str, adapter: InitializedAdapter, features: FeatureSet, config: InitConfig) -> None:
    own = features.files[task].record if task in features.files else {"task": {"name": task}, "data": None}
    read = [features.files[name] for name in tasks_read_to_initialize(features, task, config.objective)]
    about = {
        "examples": max((file.examples for file in read), default=None),
        "target_modules": features.target_modules["target_modules"],
    }
    record = provenance.make_artifact_record(
        "init",
        {**config.record(), **about},
        [path for file in read for path in file.files],
        base=features.base,
        task=own["task"],
        data=own["data"],
        concerns=adapter.warnings,
    )
    write_adapter(stage, adapter.factors, config.adapter_config(features, task, adapter.ranks))
    provenance.write_record(stage, record)
    provenance.write_digests(stage)
