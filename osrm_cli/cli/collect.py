"""``osrm collect``: text -> features/<task>.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console
from osrm_cli.cli.options import Device, DType, Pooling
from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.table import STATISTICS, find_statistic

if TYPE_CHECKING:
    import torch

    from osrm_cli.features.collect import CollectedTask, FeatureCollector, StatisticsConfig
    from osrm_cli.tasks.task import TaskSplit


def collect(
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task to read; repeat for more. Default: all.")
    ] = None,
    data: options.Data = "hub",
    model: options.Model = "minilm",
    revision: options.Revision = None,
    target_modules: options.TargetModules = None,
    statistic: Annotated[
        list[str] | None,
        typer.Option(
            "--statistic",
            help="What to keep of the features; repeat for more. Default: mean and second-moment.",
            autocompletion=options.completer(STATISTICS),
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training examples read per task.")] = 100,
    max_length: options.MaxLength = None,
    pooling: Annotated[
        Pooling, typer.Option("--pooling", help="'padded' counts padding as text, as the published code does.")
    ] = Pooling.MASKED,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.AUTO,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="I/N", help="Read the I-th of N shares; their files add up.", show_default=False
        ),
    ] = None,
    merge_shards: Annotated[
        bool, typer.Option("--merge-shards", help="Write one file from the shards in --out, reading no text.")
    ] = False,
    private: Annotated[
        float | None,
        typer.Option(
            "--private",
            metavar="SIGMA",
            help="Keep a differentially private mean alone, with this noise multiplier.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option("--clip", help="For --private: the largest norm of an example's mean.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write <task>.safetensors to.")] = Path("features"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect activation statistics of a task for each target layer.

    Example: osrm collect --task mini-mood --data mini
    """
    if merge_shards:
        _merge_shards(out, task, overwrite, dry_run, Console(json, quiet))
        return
    noise = None if private is None or clip is None else (private, clip)
    if noise is None and (private, clip) != (None, None):
        raise typer.BadParameter("give both or none of them", param_hint="--private, --clip")

    from osrm_cli.features.collect import FeatureCollector
    from osrm_cli.models import devices
    from osrm_cli.models.base_model import check_max_length, find_base_model, identify_base_model
    from osrm_cli.models.distributed import local_device, process_group, process_rank
    from osrm_cli.storage import atomic, provenance
    from osrm_cli.tasks import loading
    from osrm_cli.tasks.description import describe_split

    leader = process_rank() == 0  # under a launcher, one process writes and speaks
    console = Console(json, quiet or not leader)
    keep = _keep(statistic, shard, noise, batch_size)
    names = list(dict.fromkeys(task or loading.list_tasks(data)))
    paths = {name: keep.path(out / f"{name}.safetensors") for name in names}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    chosen, described = {}, {}
    for name in names:
        train = loading.load_split(name, data, "train")
        for warning in train.warnings if leader else ():
            console.warn(warning)
        chosen[name] = loading.draw_examples(train, samples, seed)
        if dry_run:
            described[name] = describe_split(train)
    lengths = {name: max_length or chosen[name].task.max_length or options.MAX_LENGTH for name in names}

    folder, base = find_base_model(model, revision), identify_base_model(model, revision)
    check_max_length(folder, max(lengths.values()))
    where = local_device(devices.pick_device(device))
    source = FeatureCollector(folder, where, devices.pick_dtype(dtype, where), target_modules, seed)
    if dry_run:
        _say_plan(console, paths, chosen, described, source)
        return

    written = {}
    with process_group():
        for name, path in paths.items():
            settings = {"samples": samples, "seed": seed, "pooling": str(pooling), "max_length": lengths[name]}
            found = _read(source, chosen[name], settings, keep, console)
            if leader:
                contents, facts = keep.contents(found)
                origin = {"source": data, "split": chosen[name].split, "sha256": keep.digest(chosen[name])}
                settings |= keep.settings()
                record = provenance.make_record("collect", settings, base=base, data=origin, **source.facts(), **facts)
                _write(path, contents, record, overwrite)
                written[name] = _counts(path, record)
    if leader:
        _report(console, written)


def _keep(
    names: list[str] | None, shard: str | None, noise: tuple[float, float] | None, batch_size: int
) -> "StatisticsConfig":
    """What is kept, checked.

    Raises:
        OsrmError: If the options exclude one another, or the accountant of a private mean is missing.
    """
    from osrm_cli.features.collect import StatisticsConfig
    from osrm_cli.features.shards import Shard
    from osrm_cli.features.statistics.private_mean import check_privacy

    usual = ["mean"] if noise else ["mean", "second-moment"]
    rows = list({row.name: row for row in map(find_statistic, names or usual)}.values())
    share = Shard.parse(shard) if shard else None
    if noise and [row.name for row in rows] != ["mean"]:
        raise OsrmError("--private keeps a mean alone: beside raw statistics it would protect nobody", "no --statistic")
    if noise and share:
        raise OsrmError("--private and --shard exclude one another: a shard holds raw sums", "give one of them")
    if share and any(not row.accumulator for row in rows):
        raise OsrmError(
            "a gradient has no shards: its head is fitted on all examples",
            "collect it without --shard, to another --out",
        )
    if noise:
        check_privacy(*noise)
    return StatisticsConfig(rows, share, noise, batch_size)


def _read(
    source: "FeatureCollector", data: "TaskSplit", settings: dict[str, Any], keep: "StatisticsConfig", console: Console
) -> "CollectedTask":
    """What one task's text says, through the model."""
    from osrm_cli.features.collect import CollectedTask
    from osrm_cli.models.distributed import process_rank

    encodings = source.tokenise(data, settings["max_length"])
    pad_to = settings["max_length"] if settings["pooling"] == Pooling.PADDED else None
    ours = sum(map(len, keep.batches(encodings)))
    with console.progress(f"collect {data.task.name}", ours, "examples") as advance:
        total = source.read(encodings, keep, pad_to, advance)
    found = CollectedTask(data, total)
    if keep.gradient and process_rank() == 0:
        with console.progress(f"gradient {data.task.name}", len(encodings), "examples") as advance:
            found.gradients = source.gradients(data, encodings, keep.batch_size, advance)
    return found


def _merge_shards(out: Path, names: list[str] | None, overwrite: bool, dry_run: bool, console: Console) -> None:
    from osrm_cli.features import shards
    from osrm_cli.storage import atomic

    paths = {name: out / f"{name}.safetensors" for name in names or shards.sharded_tasks(out)}
    if not paths:
        raise OsrmError(f"{out} holds no shards", "make them: osrm collect --task NAME --shard 1/2")
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    found = {name: shards.MergedShards(path) for name, path in paths.items()}
    if dry_run:
        lines = [f"would write {paths[name]} from {len(parts.paths)} shards" for name, parts in found.items()]
        console.result({"would_write": [str(path) for path in paths.values()]}, "\n".join(lines))
        return
    for name, path in paths.items():
        _write(path, *found[name].contents(), overwrite)
    _report(console, {name: _counts(path, found[name].facts) for name, path in paths.items()})


def _write(path: Path, contents: "Mapping[str, torch.Tensor]", record: Mapping[str, Any], overwrite: bool) -> None:
    from osrm_cli.storage import atomic, safetensors_io

    with atomic.write_file(path, overwrite) as stage:
        safetensors_io.save_tensors(stage, contents, record)


def _counts(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"examples": record["examples"], "tokens": record["tokens"], "layers": len(record["layers"])}
    private = {"private": record["private"]} if "private" in record else {}
    return {"path": str(path), **counts, **private}


def _report(console: Console, written: Mapping[str, dict[str, Any]]) -> None:
    lines = []
    for found in written.values():
        private = found.get("private")
        spent = f", epsilon {private['epsilon']:.3g} at delta {private['delta']:g}" if private else ""
        lines.append(f"{found['path']}  {found['examples']} examples, {found['tokens']} tokens{spent}")
    console.result({"features": written}, "\n".join(lines))


def _say_plan(
    console: Console,
    paths: dict[str, Path],
    chosen: "dict[str, TaskSplit]",
    described: dict[str, dict[str, Any]],
    source: "FeatureCollector",
) -> None:
    """Say what would be written, and what was understood of each task's data."""
    from osrm_cli.tasks.description import format_description

    lines = []
    for name, path in paths.items():
        count = len(chosen[name].examples)
        lines.append(f"would write {path}: {count} examples, {len(source.layers)} layers")
        lines.append(format_description(described[name]))
    console.result({"would_write": [str(path) for path in paths.values()], "tasks": described}, "\n".join(lines))
