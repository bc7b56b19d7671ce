"""``osrm init``: features/*.safetensors -> starts/<task>/."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.commands import options
from osrm_cli.console import Console
from osrm_cli.errors import OsrmError
from osrm_cli.maths import objectives
from osrm_cli.maths.objectives import Objective
from osrm_cli.maths.statistics import STATISTICS

if TYPE_CHECKING:
    from osrm_cli.artifacts.adapter_config import AdapterConfig
    from osrm_cli.artifacts.features import Features
    from osrm_cli.maths.lowrank import LowRank


def init(
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Task the start is for: all features but its own are used.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="A start for every task of the folder, in one pass.")] = False,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Rank of the adapter.")] = 8,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="lora_alpha; default twice the rank.", show_default=False)
    ] = None,
    objective: Annotated[
        str,
        typer.Option("--objective", help="How A is chosen.", autocompletion=options.completing(objectives.OBJECTIVES)),
    ] = "osrm",
    statistic: Annotated[
        str | None,
        typer.Option(
            "--statistic",
            help="What to choose A from, where the features hold several. Default: the objective's first choice.",
            autocompletion=options.completing(STATISTICS),
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
    """Start adapters that avoid the other tasks' features.

    Example: osrm init --exclude mini-mood --rank 8
    """
    row = _reading(objectives.find(objective), a_scale)
    if each == bool(exclude):
        raise typer.BadParameter(
            "give one of them: a start is for one task, or for each", param_hint="--exclude, --each"
        )

    from osrm_cli.artifacts import atomic
    from osrm_cli.artifacts import features as features_files
    from osrm_cli.artifacts.requests import serving

    console = Console(json, quiet)
    files = features_files.open_folder(features)
    paths = {task: out / _folder_name(task) for task in exclude or files}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    _warn_of_unknown(paths, files, console)
    read = serving(files, list(paths), row, statistic)
    if dry_run:
        console.result({"would_write": [str(path) for path in paths.values()]}, _plan(paths, row, rank, files))
        return

    recipe = {"objective": row.name, "statistic": read, "rank": rank, "alpha": alpha, "a_scale": a_scale}
    recipe |= {"eps": eps, "seed": seed}
    starts = _starts(files, list(paths), row, recipe, console)
    for task, path in paths.items():
        _write(path, task, starts[task], files, row, recipe, overwrite)
    first = next(iter(files.values()))
    lines = [f"{path}  rank {rank}, {len(first.layers)} layers, objective {row.name}" for path in paths.values()]
    facts = {"starts": {task: str(path) for task, path in paths.items()}, "objective": row.name}
    console.result({**facts, "concerns": {task: start.concerns for task, start in starts.items()}}, "\n".join(lines))


@dataclass
class _Start:
    """One task's start.

    Attributes:
        factors: By layer; B is zero.
        concerns: Reasons to doubt it.
    """

    factors: "dict[str, LowRank]" = field(default_factory=dict)
    concerns: list[str] = field(default_factory=list)


def _starts(
    files: "dict[str, Features]", wanted: list[str], row: Objective, recipe: dict[str, Any], console: Console
) -> dict[str, _Start]:
    """Every task's start in one pass over the features."""
    import torch

    from osrm_cli.artifacts.requests import requests, used
    from osrm_cli.maths.concerns import concerns
    from osrm_cli.maths.lowrank import LowRank
    from osrm_cli.maths.scale import scaled

    choose, rank, a_scale = row.load(), recipe["rank"], recipe["a_scale"]
    starts = {task: _Start() for task in wanted}
    tokens = {task: [files[name].tokens for name in used(files, task, row) if name != task] for task in wanted}
    shapes = next(iter(files.values())).layers
    with console.progress(f"init {row.name}", len(shapes) * len(wanted), "layers") as advance:
        for request in requests(files, wanted, row, rank, recipe["seed"], recipe["eps"], recipe["statistic"]):
            start, own = starts[request.task], files.get(request.task)
            A = choose(request)  # noqa: N806 - the papers' letters
            A = scaled(A, a_scale, request) if a_scale else A  # noqa: N806
            B = torch.zeros(shapes[request.layer].d_out, rank)  # noqa: N806
            start.factors[request.layer] = LowRank(B, A)
            for doubt in concerns(row.name, request, sum(tokens[request.task]), own.tokens if own else None):
                if doubt not in start.concerns:
                    start.concerns.append(doubt)
            advance(1)
    for doubt in dict.fromkeys(doubt for start in starts.values() for doubt in start.concerns):
        console.warn(doubt)
    return starts


def _write(
    path: Path,
    task: str,
    start: _Start,
    files: "dict[str, Features]",
    row: Objective,
    recipe: dict[str, Any],
    overwrite: bool,
) -> None:
    from osrm_cli.artifacts import atomic, provenance
    from osrm_cli.artifacts.adapter_writer import write_adapter
    from osrm_cli.artifacts.requests import used

    first = next(iter(files.values()))
    own = files[task].facts if task in files else {"task": {"name": task}, "data": None}
    facts = provenance.record(
        "init",
        recipe,
        [path for name in used(files, task, row) for path in files[name].files],
        base=first.base,
        task=own["task"],
        data=own["data"],
        concerns=start.concerns,
    )
    with atomic.write_folder(path, overwrite) as stage:
        write_adapter(stage, start.factors, _config(first, recipe["rank"], recipe["alpha"]))
        provenance.write(stage, facts)


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


def _warn_of_unknown(wanted: Iterable[str], files: "dict[str, Features]", console: Console) -> None:
    """A task without features of its own may be meant so, or be misspelled."""
    for task in wanted:
        if task not in files:
            near = difflib.get_close_matches(task, files, n=1)
            meant = f"did you mean '{near[0]}'?" if near else "its start avoids all the features that are there"
            console.warn(f"there are no features of a task '{task}': {meant}")


def _config(features: "Features", rank: int, alpha: float | None) -> "AdapterConfig":
    """PEFT's settings for a start; one that it does not know, such as 'osrm', it would refuse."""
    from osrm_cli.artifacts.adapter_config import AdapterConfig

    return AdapterConfig(
        base_model=features.base.name,
        revision=features.base.revision,
        task_type="SEQ_CLS",
        fan_in_fan_out=features.facts["fan_in_fan_out"],
        target_modules=tuple(features.facts["target_modules"]),
        lora_alpha=2 * rank if alpha is None else alpha,
    )


def _plan(paths: dict[str, Path], row: Objective, rank: int, files: "dict[str, Features]") -> str:
    from osrm_cli.artifacts.requests import used

    read = {task: ", ".join(str(files[name].path) for name in used(files, task, row)) or "no file" for task in paths}
    return "\n".join(f"would write {path}: {row.name}, rank {rank}, from {read[task]}" for task, path in paths.items())
