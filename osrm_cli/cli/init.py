"""``osrm init``: features/*.safetensors -> starts/<task>/."""

import difflib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console
from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.table import STATISTICS
from osrm_cli.initialization.objectives.table import DEFAULT_OBJECTIVES, OBJECTIVES, Objective, find_objective

if TYPE_CHECKING:
    from osrm_cli.features.feature_set import FeatureSet
    from osrm_cli.initialization.initialize import InitConfig, InitializedAdapter


def init(
    context: typer.Context,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Task the start is for; its A keeps off all others' features.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="A start for every task of the folder, in one pass.")] = False,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Rank of the adapter.")] = 8,
    rank_budget: Annotated[
        int | None,
        typer.Option(
            "--rank-budget",
            min=1,
            help="Sum of the ranks, spread over the layers by what a direction is worth to the objective.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="lora_alpha, at the average rank; default twice that.", show_default=False),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="How A is chosen. Default: {}; {} where the features do not serve that.".format(*DEFAULT_OBJECTIVES),
            autocompletion=options.completer(OBJECTIVES),
            show_default=False,
        ),
    ] = None,
    statistic: Annotated[
        str | None,
        typer.Option(
            "--statistic",
            help="What to choose A from, where the features hold several. Default: the objective's first choice.",
            autocompletion=options.completer(STATISTICS),
            show_default=False,
        ),
    ] = None,
    a_scale: Annotated[
        str | None,
        typer.Option(
            "--a-scale",
            help="Length of A's rows: orthonormal, kaiming, gaussian, match-output or a number.",
            show_default=False,
        ),
    ] = None,
    eps: Annotated[
        float, typer.Option("--eps", min=0, help="gevd: weight of the identity against interference.")
    ] = 1e-3,
    features: options.FeaturesFolder = Path("features"),
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder to write <task>/ to.")] = Path("starts"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Initialize adapters orthogonal to the other tasks' activations.

    Example: osrm init --exclude mini-mood --rank 8
    """
    named = find_objective(objective) if objective else None
    if each == bool(exclude):
        raise typer.BadParameter(
            "give one of them: a start is for one task, or for each", param_hint="--exclude, --each"
        )
    if rank_budget is not None and options.given_on_command_line(context, "rank"):
        raise typer.BadParameter("give one of them: they exclude one another", param_hint="--rank, --rank-budget")

    from osrm_cli.features.feature_set import FeatureSet
    from osrm_cli.initialization.from_features import choose_statistic, default_objective
    from osrm_cli.initialization.initialize import InitConfig
    from osrm_cli.initialization.objectives.rank_budget import check_spectrum
    from osrm_cli.storage import atomic

    console = Console(json, quiet)
    files = FeatureSet.open(features)
    row = _reading(named or default_objective(files, exclude or files.tasks, statistic), a_scale)
    if rank_budget is not None:
        check_spectrum(row.name)
    paths = {task: out / _folder_name(task) for task in exclude or files.tasks}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    _warn_of_unknown(paths, files, console)
    read = choose_statistic(files, list(paths), row, statistic)
    layers = len(files.target_layers)
    average = rank if rank_budget is None else rank_budget / layers
    told = f"rank {rank}" if rank_budget is None else f"ranks of {rank_budget} in all"
    if dry_run:
        console.result({"would_write": [str(path) for path in paths.values()]}, _plan(paths, row, told, files))
        return

    recipe = InitConfig(row, read, average, rank_budget, alpha, a_scale, eps, seed)
    starts = _starts(files, list(paths), recipe, console)
    for task, path in paths.items():
        _write(path, task, starts[task], files, recipe, overwrite)
    lines = [f"{path}  {told}, {layers} layers, objective {row.name}" for path in paths.values()]
    facts = {"starts": {task: str(path) for task, path in paths.items()}, "objective": row.name}
    console.result({**facts, "concerns": {task: start.warnings for task, start in starts.items()}}, "\n".join(lines))


def _starts(
    files: "FeatureSet", wanted: list[str], recipe: "InitConfig", console: Console
) -> "dict[str, InitializedAdapter]":
    """Every task's start, its doubts told."""
    from osrm_cli.initialization import initialize

    steps, name = len(files.target_layers) * len(wanted), recipe.objective.name
    ranks = None
    if recipe.rank_budget is not None:
        with console.progress("ranks", steps, "layers") as advance:
            ranks = initialize.allocate_ranks(files, wanted, recipe, recipe.rank_budget, advance)
    with console.progress(f"init {name}", steps, "layers") as advance:
        made = initialize.initialize_layers(files, wanted, recipe, ranks, advance)
    for doubt in dict.fromkeys(doubt for start in made.values() for doubt in start.warnings):
        console.warn(doubt)
    return made


def _write(
    path: Path,
    task: str,
    start: "InitializedAdapter",
    files: "FeatureSet",
    recipe: "InitConfig",
    overwrite: bool,
) -> None:
    from osrm_cli.adapters.writer import write_adapter
    from osrm_cli.initialization.from_features import tasks_read
    from osrm_cli.storage import atomic, provenance

    own = files.files[task].record if task in files.files else {"task": {"name": task}, "data": None}
    read = [files.files[name] for name in tasks_read(files, task, recipe.objective)]
    about = {
        "examples": max((held.examples for held in read), default=None),
        "target_modules": files.target_modules["target_modules"],
    }
    facts = provenance.make_record(
        "init",
        {**recipe.record(), **about},
        [path for held in read for path in held.files],
        base=files.base,
        task=own["task"],
        data=own["data"],
        concerns=start.warnings,
    )
    with atomic.write_folder(path, overwrite) as stage:
        write_adapter(stage, start.factors, recipe.config(files, start.ranks))
        provenance.write_record(stage, facts)


def _reading(row: Objective, a_scale: str | None) -> Objective:
    """The objective, with what the scale needs to read beside it."""
    if a_scale == "match-output":
        kinds = row.statistics or tuple(statistic.kind for statistic in STATISTICS)
        return replace(row, needs_own=True, statistics=kinds)
    return row


def _folder_name(task: str) -> str:
    if task != Path(task).name:
        raise OsrmError(f"task '{task}' is no name of a folder", "give the task's name alone")
    return task


def _warn_of_unknown(wanted: Iterable[str], files: "FeatureSet", console: Console) -> None:
    """A task without features of its own may be meant so, or be misspelled."""
    for task in wanted:
        if task not in files.tasks:
            near = difflib.get_close_matches(task, files.tasks, n=1)
            meant = f"did you mean '{near[0]}'?" if near else "its start avoids all the features that are there"
            console.warn(f"there are no features of a task '{task}': {meant}")


def _plan(paths: dict[str, Path], row: Objective, rank: str, files: "FeatureSet") -> str:
    from osrm_cli.initialization.from_features import tasks_read

    read = {
        task: ", ".join(str(files.files[name].path) for name in tasks_read(files, task, row)) or "no file"
        for task in paths
    }
    return "\n".join(f"would write {path}: {row.name}, {rank}, from {read[task]}" for task, path in paths.items())
