"""``osrm calibrate``: merged/ -> calibrated/."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType

if TYPE_CHECKING:
    from rich.table import Table


def calibrate(
    folder: Annotated[Path, typer.Argument(help="A merged folder whose tasks have heads.")] = Path("merged"),
    samples: Annotated[int, typer.Option("--samples", min=3, help="Training examples read per task.")] = 128,
    adapters: Annotated[
        Path | None,
        typer.Option(
            "--adapters", help="Folder that contains the single adapters, if they have moved.", show_default=False
        ),
    ] = None,
    data: options.RecordedData = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.FLOAT32,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write.")] = Path("calibrated"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit each merged head to its single adapter, without labels.

    Fits a linear map by ridge regression on unlabelled training examples and folds it into the task's head.

    Example: osrm calibrate merged
    """
    from osrm_cli.calibration.calibrate import calibrate_folder

    console = Console(json, quiet)
    result = calibrate_folder(
        folder,
        samples=samples,
        adapters=adapters,
        data=data,
        model=model,
        revision=revision,
        batch_size=batch_size,
        seed=seed,
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
        console.result({"would_write": str(out)}, f"would write {out}: {', '.join(result.tasks)}")
        return
    console.result({"path": str(out), "tasks": result.rows}, _make_rich_table(result.rows))
    for note in result.notes:
        console.note(note)


def _make_rich_table(rows: dict[str, dict[str, Any]]) -> "Table":
    """Mean squared differences between merged and single representations."""
    calibration_table = table(
        "task", "examples", "before", "after", "left", "prior", "spread", "head", title="Calibration"
    )
    for task, row in rows.items():
        left = f"{row['error'] / row['before']:.1%}" if row["before"] else "-"
        prior = "identity" if row["prior"] else "mean"
        head = "calibrated" if row["used"] else "kept"
        figures = (f"{row['before']:.4g}", f"{row['error']:.4g}", left, prior, f"{row['spread']:.2f}", head)
        calibration_table.add_row(task, str(row["samples"]), *figures)
    return calibration_table
