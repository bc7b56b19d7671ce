"""``osrm collect``: text -> features/<task>.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, align_console_columns
from osrm_cli.cli.options import Device, DType, Pooling, Tokens
from osrm_cli.features.memory import DEFAULT_MEMORY, format_memory_size
from osrm_cli.features.statistics.table import STATISTICS


def collect(
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task to read; repeat for more. Default: all.")
    ] = None,
    data: options.Data = "hub",
    split_dev: options.SplitDev = None,
    model: options.Model = "minilm",
    revision: options.Revision = None,
    target_modules: options.TargetModules = None,
    statistic: Annotated[
        list[str] | None,
        typer.Option(
            "--statistic",
            help="What to collect: {}; repeat for more. See --list. Default: mean and second-moment.".format(
                ", ".join(row.name for row in STATISTICS)
            ),
            autocompletion=options.shell_completer(STATISTICS),
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training examples read per task.")] = 100,
    max_length: options.MaxLength = None,
    pooling: Annotated[
        Pooling, typer.Option("--pooling", help="'padded' counts padding as text, as the published code does.")
    ] = Pooling.MASKED,
    tokens: Annotated[
        Tokens,
        typer.Option(
            "--tokens", help="Tokens of text tasks that count: all; on causal models also the prompt's or completion's."
        ),
    ] = Tokens.ALL,
    skip_long: options.SkipLong = False,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.AUTO,
    offload: Annotated[
        bool, typer.Option("--offload", help="Leave the model's weights on disk and read them layer by layer.")
    ] = False,
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Most that statistics may take at a time beside the model; layers are read in as many passes.",
        ),
    ] = DEFAULT_MEMORY,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Read the I-th of N shares; the files add up.",
            show_default=False,
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
            help="Only a differentially private mean, with this noise multiplier.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option("--clip", help="For --private: maximum norm of an example's mean.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write <task>.safetensors to.")] = Path(
        "features"
    ),
    overwrite: options.Overwrite = False,
    list_statistics: Annotated[bool, typer.Option("--list", help="List the statistics and exit.")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect activation statistics of a task for each target layer.

    Example: osrm collect --task mini-mood --data mini
    """
    if list_statistics:
        rows = [{"name": row.name, "summary": row.summary} for row in STATISTICS]
        text = align_console_columns([("statistic", "what it is"), *(tuple(row.values()) for row in rows)])
        Console(json, quiet).result({"statistics": rows}, text)
        return
    if merge_shards:
        _merge_shards_command(task or [], out, overwrite, dry_run, Console(json, quiet))
        return
    if (private is None) != (clip is None):
        raise typer.BadParameter("give both or none of them", param_hint="--private, --clip")

    from osrm_cli.features.collect import collect_features
    from osrm_cli.models.distributed import process_rank

    is_first = process_rank() == 0  # under a launcher, one process speaks
    console = Console(json, quiet or not is_first)
    collected = collect_features(
        task or [],
        options.task_source(data, split_dev) or data,
        model=model,
        revision=revision,
        target_modules=target_modules,
        statistics=statistic or [],
        samples=samples,
        max_length=max_length,
        pooling=pooling,
        tokens=tokens,
        skip_long=skip_long,
        batch_size=batch_size,
        seed=seed,
        device=device,
        dtype=dtype,
        offload=offload,
        memory=memory,
        shard=shard,
        private=private,
        clip=clip,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    if not is_first:
        return
    for warning in collected.warnings:
        console.warn(warning)
    if not dry_run:
        console.result({"features": collected.files}, _console_file_list(collected.files))
        return
    from osrm_cli.tasks.description import format_task_description

    lines = []
    for name, path in collected.paths.items():
        lines.append(f"would write {path}: {collected.examples[name]} examples, {collected.layers} layers")
        plan = collected.memory[name]
        passes = "one pass" if plan["passes"] == 1 else f"{plan['passes']} passes"
        lines.append(f"  statistics take up to {format_memory_size(plan['memory'])} beside the model, in {passes}")
        lines.append(format_task_description(collected.data[name]))
    would_write = [str(path) for path in collected.paths.values()]
    console.result({"would_write": would_write, "tasks": collected.data, "memory": collected.memory}, "\n".join(lines))


def _merge_shards_command(tasks: list[str], out: Path, overwrite: bool, dry_run: bool, console: Console) -> None:
    from osrm_cli.features.merge_shards import merge_shards

    merged = merge_shards(tasks, out, overwrite=overwrite, dry_run=dry_run)
    if not dry_run:
        console.result({"features": merged.files}, _console_file_list(merged.files))
        return
    lines = [f"would write {path} from {merged.shards[name]} shards" for name, path in merged.paths.items()]
    console.result({"would_write": [str(path) for path in merged.paths.values()]}, "\n".join(lines))


def _console_file_list(files: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for file in files.values():
        private = file.get("private")
        budget = f", epsilon {private['epsilon']:.3g} at delta {private['delta']:g}" if private else ""
        lines.append(f"{file['path']}  {file['examples']} examples, {file['tokens']} tokens{budget}")
    return "\n".join(lines)
