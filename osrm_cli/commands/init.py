"""``osrm init``: features/*.safetensors -> starts/<task>/."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osrm_cli.commands import options
from osrm_cli.console import Console
from osrm_cli.errors import OsrmError
from osrm_cli.maths import objectives

if TYPE_CHECKING:
    from osrm_cli.artifacts.adapter_config import AdapterConfig
    from osrm_cli.artifacts.features import Features


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
    a_scale: Annotated[
        str | None,
        typer.Option(
            "--a-scale",
            help="Length of A's rows: orthonormal, kaiming, gaussian, match-output or a number; default the objective's.",
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
    row = objectives.find(objective)
    if each == bool(exclude):
        raise OsrmError(
            "say which task the start is for", "osrm init --exclude TASK, or osrm init --each for every task"
        )

    import torch

    from osrm_cli.artifacts import atomic, provenance
    from osrm_cli.artifacts import features as features_files
    from osrm_cli.artifacts.adapter_writer import write_adapter
    from osrm_cli.artifacts.requests import requests
    from osrm_cli.maths.lowrank import LowRank
    from osrm_cli.maths.scale import scaled

    console = Console(json, quiet)
    files = features_files.open_folder(features)
    wanted = exclude or list(files)
    paths = {task: out / task for task in wanted}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    if dry_run:
        console.result({"would_write": [str(path) for path in paths.values()]}, _plan(paths, row.name, rank, files))
        return

    choose, first = row.load(), next(iter(files.values()))
    factors: dict[str, dict[str, LowRank]] = {task: {} for task in wanted}
    with console.progress(f"init {row.name}", len(first.layers) * len(wanted), "layers") as advance:
        for request in requests(files, wanted, row, rank, seed, eps):
            A = choose(request)  # noqa: N806 - the papers' letters
            A = scaled(A, a_scale, request) if a_scale else A  # noqa: N806
            factors[request.task][request.layer] = LowRank(torch.zeros(request.d_out, rank), A)
            advance(1)
    settings = {"objective": row.name, "rank": rank, "a_scale": a_scale, "eps": eps, "seed": seed}
    for task, path in paths.items():
        used = [file.path for name, file in files.items() if row.statistics and (name != task or row.needs_own)]
        own = files[task].facts if task in files else {"task": {"name": task}, "data": None}
        facts = provenance.record("init", settings, used, base=first.base, task=own["task"], data=own["data"])
        with atomic.write_folder(path, overwrite) as stage:
            write_adapter(stage, factors[task], _config(first, rank, alpha))
            provenance.write(stage, facts)
    lines = [f"{path}  rank {rank}, {len(first.layers)} layers, objective {row.name}" for path in paths.values()]
    console.result(
        {"starts": {task: str(path) for task, path in paths.items()}, "objective": row.name}, "\n".join(lines)
    )


def _config(features: "Features", rank: int, alpha: float | None) -> "AdapterConfig":
    """PEFT's settings for a start; one that it does not know, such as 'osrm', it would refuse."""
    from osrm_cli.artifacts.adapter_config import AdapterConfig

    names = features.facts["target_modules"]
    return AdapterConfig(
        base_model=features.base.name,
        revision=features.base.revision,
        task_type="SEQ_CLS",
        fan_in_fan_out=features.facts["fan_in_fan_out"],
        target_modules=tuple(features.layers if names == ["all-linear"] else names),
        lora_alpha=2 * rank if alpha is None else alpha,
    )


def _plan(paths: dict[str, Path], objective: str, rank: int, files: "dict[str, Features]") -> str:
    read = ", ".join(str(file.path) for file in files.values())
    return "\n".join(f"would write {path}: {objective}, rank {rank}, from {read}" for path in paths.values())
