"""``osrm init``: features/*.safetensors -> starts/<task>/."""

from pathlib import Path
from typing import Annotated

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, align_console_columns
from osrm_cli.features.statistics.table import STATISTICS
from osrm_cli.initialization.objectives.table import DEFAULT_OBJECTIVES, OBJECTIVES, Objective


def init(
    context: typer.Context,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Task to initialize. A is chosen orthogonal to all other tasks' activations."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Initialize every task of the folder, in one pass.")] = False,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Rank of the adapter.")] = 8,
    rank_budget: Annotated[
        int | None,
        typer.Option(
            "--rank-budget",
            min=1,
            help="Sum of the ranks, allocated to the layers by the score of each direction.",
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
            help="How A is chosen: {}. See --list. Default: {}; {} where the features cannot serve that.".format(
                ", ".join(row.name for row in OBJECTIVES), *DEFAULT_OBJECTIVES
            ),
            autocompletion=options.shell_completer(OBJECTIVES),
            show_default=False,
        ),
    ] = None,
    statistic: Annotated[
        str | None,
        typer.Option(
            "--statistic",
            help="What A is chosen from, where the features hold several. Default: the objective's first in --list.",
            autocompletion=options.shell_completer(STATISTICS),
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
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write <task>/ to.")] = Path("starts"),
    overwrite: options.Overwrite = False,
    list_objectives: Annotated[bool, typer.Option("--list", help="List the objectives and exit.")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Initialize adapters orthogonal to the other tasks' activations.

    Example: osrm init --exclude mini-mood --rank 8
    """
    console = Console(json, quiet)
    if list_objectives:
        _print_objectives(console)
        return
    if each == bool(exclude):
        raise typer.BadParameter("give one of them: some tasks, or each", param_hint="--exclude, --each")
    if rank_budget is not None and options.given_on_command_line(context, "rank"):
        raise typer.BadParameter("give one of them: they exclude one another", param_hint="--rank, --rank-budget")

    from osrm_cli.initialization.initialize import initialize_adapters

    result = initialize_adapters(
        exclude or [],
        features,
        rank=rank if rank_budget is None else None,
        rank_budget=rank_budget,
        alpha=alpha,
        objective=objective,
        statistic=statistic,
        a_scale=a_scale,
        eps=eps,
        seed=seed,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    for warning in dict.fromkeys([*result.notes, *(each for task in result.warnings.values() for each in task)]):
        console.warn(warning)
    ranks = f"rank {rank}" if rank_budget is None else f"ranks of {rank_budget} in all"
    if dry_run:
        read = {task: ", ".join(map(str, paths)) or "no file" for task, paths in result.read.items()}
        lines = [
            f"would write {path}: {result.objective}, {ranks}, from {read[task]}" for task, path in result.paths.items()
        ]
        console.result({"would_write": [str(path) for path in result.paths.values()]}, "\n".join(lines))
        return
    lines = [f"{path}  {ranks}, {result.layers} layers, objective {result.objective}" for path in result.paths.values()]
    starts = {task: str(path) for task, path in result.paths.items()}
    console.result({"starts": starts, "objective": result.objective, "concerns": result.warnings}, "\n".join(lines))


def _print_objectives(console: Console) -> None:
    keys = ("name", "summary", "statistics", "source")
    objectives = [
        {key: getattr(row, key) for key in keys} | {"needs": _printed_feature_needs(row)} for row in OBJECTIVES
    ]
    rows = [("objective", "statistics", "of", "what it chooses")]
    rows += [
        (row.name, ", ".join(row.statistics) or "-", ", ".join(_printed_feature_needs(row)) or "-", row.summary)
        for row in OBJECTIVES
    ]
    console.result({"objectives": objectives}, align_console_columns(rows))


def _printed_feature_needs(objective: Objective) -> list[str]:
    """Whose features an objective reads."""
    needs = {"others": objective.needs_others, "own": objective.needs_own, "own gradient": objective.needs_gradient}
    return [name for name, needed in needs.items() if needed]
