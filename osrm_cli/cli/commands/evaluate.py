"""``osrm eval``: merged/ -> merged/scores.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A merged folder, or any adapter folder with a head.")] = Path(
        "merged"
    ),
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task to score; repeat for more. Default: all.")
    ] = None,
    data: options.RecordedData = None,
    split: Annotated[str, typer.Option("--split", help="Split to score on.")] = "dev",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Examples per task (the first ones). Default: all.", show_default=False),
    ] = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Write every prediction, and the labels.")] = False,
    single: Annotated[bool, typer.Option("--single/--no-single", help="Score the single adapters too.")] = True,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 64,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.FLOAT32,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", "--output", help="File to write. Default: FOLDER/scores.json.", show_default=False),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score each task of a merged folder and its single adapter.

    Example: osrm eval merged
    """
    from osrm_cli.evaluation.evaluate import evaluate_folder

    console = Console(json, quiet)
    result = evaluate_folder(
        folder,
        task or [],
        data=data,
        split=split,
        limit=limit,
        predictions=predictions,
        single=single,
        model=model,
        revision=revision,
        max_length=max_length,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    for warning in result.warnings:
        console.warn(warning)
    if dry_run:
        names = ", ".join(result.tasks)
        console.result({"would_write": [str(result.path)]}, f"would write {result.path}: {names}")
        return
    for note in result.notes:
        console.note(note)
    console.result({"path": str(result.path), **result.summary}, _make_table(result.summary, split))


def _make_table(summary: Mapping[str, Any], split: str) -> Any:
    rows = table("task", "single", "merged", "ratio", "examples", "metrics", title=f"Scores ({split})")
    for name, row in summary["tasks"].items():
        metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in row["metrics"].items())
        rows.add_row(
            name, _cell(row["single"]), _cell(row["headline"]), _percent(row["ratio"]), str(row["examples"]), metrics
        )
    average = summary["average"]
    rows.add_section()
    rows.add_row("average", _cell(average["single"]), _cell(average["headline"]), _percent(average["ratio"]), "", "")
    return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
