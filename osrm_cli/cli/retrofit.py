"""``osrm retrofit``: adapters/* -> retrofitted/<task>/."""

from collections import defaultdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.table import OBJECTIVES, find_objective

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from osrm_cli.adapters.adapter import Adapter
    from osrm_cli.features.feature_set import FeatureSet
    from osrm_cli.linalg.low_rank import LowRank
    from osrm_cli.retrofit.retrofit import Factors, RetrofitChange


class RetrofitMethod(StrEnum):
    """How an existing update is made to keep off the other tasks' inputs."""

    PROJECTION = "projection"
    BALANCED = "balanced"


_LARGE_CHANGE = 0.5
# Options that one way alone takes.
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
        typer.Option("--method", "-m", help="balanced: B stays, A is solved for. projection: A is a start's."),
    ] = RetrofitMethod.BALANCED,
    mu: Annotated[float, typer.Option("--mu", min=0, help="balanced: cost of the other tasks' interference.")] = 0.3,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="projection: how A is chosen.",
            autocompletion=options.completer(OBJECTIVES),
        ),
    ] = "osrm",
    eps: Annotated[float, typer.Option("--eps", min=0, help="projection with gevd: weight of the identity.")] = 1e-3,
    task: options.TaskOf = None,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder to write <task>/ to.")] = Path("retrofitted"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make existing adapters mergeable at the rank they have.

    Example: osrm retrofit adapters/* --features features
    """
    from osrm_cli.features.adapter_match import check_features, open_adapters
    from osrm_cli.features.feature_set import FeatureSet
    from osrm_cli.retrofit.retrofit import (
        balance_adapter,
        measure_changes,
        project_adapter,
        retrofit_warnings,
    )
    from osrm_cli.storage import atomic

    console = Console(json, quiet)
    row = find_objective(objective)
    for name, way in _OPTION_METHOD.items():
        if way is not method and options.given_on_command_line(context, name):
            raise OsrmError(f"method {method} does not use --{name}", f"it belongs to --method {way}")
    opened = open_adapters(adapters, task or [])
    files = FeatureSet.open(features)
    check_features(opened, files)
    files.other_tasks(files.tasks[0])
    source = _source(files, method)
    paths = {adapter.name: out / adapter.name for adapter in opened}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    if dry_run:
        text = "\n".join(f"would write {path}: {method} from {', '.join(files.tasks)}" for path in paths.values())
        console.result({"would_write": [str(path) for path in paths.values()]}, text)
        return
    doubts = retrofit_warnings(source) if method is RetrofitMethod.BALANCED else []
    for doubt in doubts:
        console.warn(doubt)
    if method is RetrofitMethod.BALANCED:
        settings: dict[str, Any] = {"method": str(method), "mu": mu}
        made = balance_adapter(opened, source, mu)
    else:
        settings = {"method": str(method), "objective": row.name, "eps": eps, "seed": seed}
        made = project_adapter(opened, files, row, seed, eps)
    new = _gather(made, opened, str(method), console)
    changed = measure_changes(new, opened, source)
    for adapter in opened:
        facts = {"changed": vars(changed[adapter.name]), "statistic": source.kind, "concerns": doubts}
        _write(paths[adapter.name], adapter, new[adapter.name], files, settings, facts, overwrite)
    for name, change in changed.items():
        if change.own > _LARGE_CHANGE:
            console.warn(
                f"{name}: {change.own:.0%} of the update on its own inputs has changed, so its own score will suffer; "
                "--method balanced with a smaller --mu keeps more"
            )
    told = {name: {"path": str(paths[name]), **vars(change)} for name, change in changed.items()}
    console.result({"adapters": told, **settings}, _table(changed, paths, settings))


def _source(files: "FeatureSet", method: RetrofitMethod) -> "FeatureSet":
    """What is read of the features: a mean or a few of them do not say what an update may not lose."""
    if method is RetrofitMethod.BALANCED:
        return files.select(("second-moment", "sketch"), "method balanced")
    return files.select()


def _gather(
    made: "Iterator[Factors]", adapters: "list[Adapter]", what: str, console: Console
) -> "dict[str, dict[str, LowRank]]":
    new: dict[str, dict[str, LowRank]] = defaultdict(dict)
    with console.progress(f"retrofit {what}", sum(len(adapter.layers) for adapter in adapters), "layers") as advance:
        for adapter, layer, factors in made:
            new[adapter.name][layer] = factors
            advance(1)
    return new


def _write(
    path: Path,
    adapter: "Adapter",
    new: "Mapping[str, LowRank]",
    files: "FeatureSet",
    settings: dict[str, Any],
    facts: dict[str, Any],
    overwrite: bool,
) -> None:
    """The adapter with its task, data and length, so that ``osrm eval`` scores it as it scores the old one."""
    from osrm_cli.retrofit.retrofit import (
        write_retrofitted,
    )
    from osrm_cli.storage import atomic, hub, provenance

    own = files.files[adapter.name]
    length = (adapter.record.get("settings") or {}).get("max_length")
    record = provenance.make_record(
        "retrofit",
        {**settings, "max_length": length},
        files.paths,
        base=adapter.base or own.base,
        task=adapter.record.get("task") or own.record["task"],
        data=adapter.record.get("data") or {"source": (own.record.get("data") or {}).get("source")},
        **{part: found for part, found in adapter.origin().items() if part in ("start", "train")},
        **facts,
    )
    old = {"path": adapter.source, "commit": hub.commit_of(adapter.folder), "sha256": adapter.sha256()}
    with atomic.write_folder(path, overwrite) as stage:
        write_retrofitted(stage, adapter, new.items())
        provenance.write_record(stage, {**record, "inputs": [old, *record["inputs"]]})


def _table(changed: "Mapping[str, RetrofitChange]", paths: dict[str, Path], settings: dict[str, Any]) -> Any:
    title = f"Retrofitted ({', '.join(f'{name} {value}' for name, value in settings.items())})"
    made = table("adapter", "changed on its own inputs", "energy left on the others'", title=title)
    for name, change in changed.items():
        made.add_row(str(paths[name]), f"{change.own:.1%}", f"{change.others:.1%}")
    return made
