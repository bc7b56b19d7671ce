"""``osrm sweep``: adapters/<task>/ -> sweep/sweep.json and sweep/curve.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType, OutputFormat
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import METHODS

if TYPE_CHECKING:
    from osrm_cli.sweep.grid import Value
    from osrm_cli.sweep.results import SweepResult


def sweep(
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders or hub ids with heads, in any order.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="Merging method; repeat for more. Default: task-arith.",
            autocompletion=options.shell_completer(METHODS),
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            "--lambda",
            metavar="VALUES",
            help="Comma-separated numbers, or START:STOP:STEP; repeat for more. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        list[str] | None,
        typer.Option("--density", metavar="VALUES", help="As --lambda, for methods that use it.", show_default=False),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUES",
            help="Any other option of osrm merge, with values as for --lambda.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Task to score; repeat for more. Default: every adapter's.", show_default=False),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Score every merge with calibrated heads too.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Training examples read per task; default 128 for --calibrate, 100 for a method.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of features files; default features.", show_default=False)
    ] = None,
    data: options.RecordedData = None,
    split_dev: options.SplitDev = None,
    split: Annotated[str, typer.Option("--split", help="Split to score on.")] = "dev",
    validation_split: Annotated[
        str | None,
        typer.Option(
            "--validation-split",
            help="Split that selects the best. Default: a random half of --split; the other half is the test set.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Examples per task and split (the first ones). Default: all.", show_default=False
        ),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the best points write answers to text tasks; else loss alone.")
    ] = False,
    generate_all: Annotated[
        bool, typer.Option("--generate-all", help="Let every point write answers, and select by the tasks' metrics.")
    ] = False,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Write predictions of the single adapters and the best.")
    ] = False,
    form: Annotated[
        OutputFormat, typer.Option("--as", help="Score the merge as an adapter, or as a model.")
    ] = OutputFormat.ADAPTER,
    seed: options.Seed = 0,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    skip_long: options.SkipLong = False,
    batch_size: options.BatchSize = 64,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.FLOAT32,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write.")] = Path("sweep"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score merges over a grid of options, and select the best.

    The best are selected on one half of the examples and reported on the other half.

    Example: osrm sweep adapters/* --method task-arith --lambda 0.1:1.0:0.1
    """
    from osrm_cli.sweep.sweep import run_sweep

    console = Console(json, quiet)
    report = run_sweep(
        adapters,
        method or ["task-arith"],
        _parse_grid_options(scale, density, option),
        task or [],
        calibrate=calibrate,
        samples=samples,
        features=features,
        data=options.task_source(data, split_dev),
        split=split,
        validation_split=validation_split,
        limit=limit,
        predictions=predictions,
        generate=generate,
        generate_all=generate_all,
        form=form,
        seed=seed,
        model=model,
        revision=revision,
        max_length=max_length,
        skip_long=skip_long,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    for warning in report.warnings:
        console.warn(warning)
    for note in report.notes:
        console.note(note)
    if report.result is None:
        line = f"would write {out}: {report.points} merges on {', '.join(report.tasks)}"
        console.result({"would_write": str(out), "points": report.points}, line)
        return
    console.result({"path": str(out), **report.result.record()}, _make_rich_table(report.result))


def _parse_grid_options(
    scale: Sequence[str] | None, density: Sequence[str] | None, others: Sequence[str] | None
) -> "dict[str, list[Value]]":
    """The grid: values by option."""
    from osrm_cli.sweep.grid import parse_grid_option, parse_grid_values

    axes = {}
    for name, texts in (("lambda", scale), ("density", density)):
        if texts:
            axes[name] = parse_grid_values(f"--{name}", texts)
    for text in others or []:
        name, values = parse_grid_option(text)
        if name in axes:
            raise OsrmError(f"--option {text}: {name} is given twice", "give all its values at once")
        axes[name] = values
    return axes


def _make_rich_table(result: "SweepResult") -> Any:
    from osrm_cli.evaluation.scores import average

    rows = table("best", "options", "validation", "test", "of single", title="Average score, best by validation")
    single = average(result.test)
    for index in result.best():
        point = result.points[index]
        options_text = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in sorted(point.options.items()))
        test = average(point.test)
        share = f"{100 * test / single:.1f} %" if single > 0 else "-"
        name = f"{point.method}, calibrated" if point.calibrated else point.method
        rows.add_row(name, options_text, f"{average(point.validation):.2f}", f"{test:.2f}", share)
    rows.add_section()
    rows.add_row("single adapters", "", f"{average(result.validation):.2f}", f"{single:.2f}", "")
    return rows
