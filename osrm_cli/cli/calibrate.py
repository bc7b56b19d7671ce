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
            "--adapters", help="Folder that holds the single adapters, if they have moved.", show_default=False
        ),
    ] = None,
    data: options.RecordedData = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.FLOAT32,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("calibrated"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Lead each task's representation back to its single adapter's; no label is read.

    Fits a linear map by ridge regression on unlabelled training examples and folds it into the task's head.

    Example: osrm calibrate merged
    """
    from osrm_cli.calibration.calibrate import Calibration, CalibrationSettings
    from osrm_cli.calibration.calibrated_folder import check_not_calibrated, copy_merged_folder
    from osrm_cli.evaluation import classifiers
    from osrm_cli.evaluation.single_adapters import find_single_adapters
    from osrm_cli.models import devices
    from osrm_cli.models.base_model import resolve_base_model
    from osrm_cli.storage import atomic

    console = Console(json, quiet)
    check_not_calibrated(folder)
    atomic.refuse_existing(out, overwrite)
    tasks = classifiers.open_classifiers(folder).values()
    first = next(iter(tasks))
    place, _ = resolve_base_model(folder, first.base, first.base_name, model, revision)
    where = devices.pick_device(device)
    kind = str(devices.pick_dtype(dtype, where)).removeprefix("torch.")
    calibration = Calibration.draw(
        find_single_adapters(tasks, adapters), data, CalibrationSettings(samples, seed, kind, batch_size)
    )
    if dry_run:
        names = ", ".join(task.task for task in tasks)
        console.result({"would_write": str(out)}, f"would write {out}: {names}")
        return
    with atomic.write_folder(out, overwrite) as stage:
        copy_merged_folder(folder, stage)
        rows = calibration.apply(stage, place, where, console.progress)
    console.result({"path": str(out), "tasks": rows}, _table(rows))
    for task, row in rows.items():
        if not row["used"]:
            console.note(f"{task}: no map comes closer on left-out examples: uncalibrated is kept")


def _table(rows: dict[str, dict[str, Any]]) -> "Table":
    """Mean squared differences between merged and single representations."""
    made = table("task", "examples", "before", "after", "left", "prior", "spread", "head", title="Calibration")
    for task, row in rows.items():
        left = f"{row['error'] / row['before']:.1%}" if row["before"] else "-"
        prior = "identity" if row["prior"] else "mean"
        head = "calibrated" if row["used"] else "kept"
        figures = (f"{row['before']:.4g}", f"{row['error']:.4g}", left, prior, f"{row['spread']:.2f}", head)
        made.add_row(task, str(row["samples"]), *figures)
    return made
