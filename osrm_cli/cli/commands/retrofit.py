"""``osrm retrofit``: adapters/* -> retrofitted/<task>/."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.table import OBJECTIVES

if TYPE_CHECKING:
    from rich.table import Table

    from osrm_cli.retrofit.retrofit import RetrofittedAdapters


class RetrofitMethod(StrEnum):
    """How existing adapters are made to interfere less."""

    PROJECTION = "projection"
    BALANCED = "balanced"


# Options that one method alone takes.
_OPTION_METHOD = {
    "mu": RetrofitMethod.BALANCED,
    "objective": RetrofitMethod.PROJECTION,
    "eps": RetrofitMethod.PROJECTION,
}


def retrofit(
    context: typer.Context,
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders or hub ids, of any program.")],
    features: options.FeaturesFolder = Path("features"),
    method: Annotated[
        RetrofitMethod,
        typer.Option("--method", "-m", help="balanced: A is solved for. projection: A by --objective, B fitted."),
    ] = RetrofitMethod.BALANCED,
    mu: Annotated[float, typer.Option("--mu", min=0, help="balanced: cost of the other tasks' interference.")] = 0.3,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="projection: how A is chosen. See osrm init --list.",
            autocompletion=options.shell_completer(OBJECTIVES),
        ),
    ] = "osrm",
    eps: Annotated[float, typer.Option("--eps", min=0, help="projection with gevd: weight of the identity.")] = 1e-3,
    task: options.TaskOf = None,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write <task>/ to.")] = Path(
        "retrofitted"
    ),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make existing adapters mergeable without changing their ranks.

    Example: osrm retrofit adapters/* --features features
    """
    for name, owner in _OPTION_METHOD.items():
        if owner is not method and options.given_on_command_line(context, name):
            raise OsrmError(f"method {method} does not use --{name}", f"it belongs to --method {owner}")

    from osrm_cli.retrofit.retrofit import retrofit_adapters

    console = Console(json, quiet)
    result = retrofit_adapters(
        adapters,
        features,
        method=str(method),
        mu=mu,
        objective=objective,
        eps=eps,
        tasks=task or [],
        seed=seed,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    for warning in result.warnings:
        console.warn(warning)
    if dry_run:
        lines = [f"would write {path}: {method} from {', '.join(result.tasks)}" for path in result.paths.values()]
        console.result({"would_write": [str(path) for path in result.paths.values()]}, "\n".join(lines))
        return
    rows = {name: {"path": str(result.paths[name]), **vars(change)} for name, change in result.changes.items()}
    console.result({"adapters": rows, **result.settings}, _make_rich_table(result))


def _make_rich_table(result: "RetrofittedAdapters") -> "Table":
    title = f"Retrofitted ({', '.join(f'{name} {value}' for name, value in result.settings.items())})"
    rows = table("adapter", "changed on its own inputs", "energy left on the others'", title=title)
    for name, change in result.changes.items():
        rows.add_row(str(result.paths[name]), f"{change.own:.1%}", f"{change.others:.1%}")
    return rows
