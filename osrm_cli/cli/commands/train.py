"""``osrm train``: starts/<task>/ -> adapters/<task>/."""

from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console
from osrm_cli.cli.options import Device, DType, Freeze, HeadInit, PenaltyUnit, Quantize


def train(
    starts: Annotated[list[Path], typer.Argument(help="Adapter folders to fine-tune, each on its own task.")],
    data: options.RecordedData = None,
    split_dev: options.SplitDev = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    lr: Annotated[float, typer.Option("--lr", min=0, help="Peak learning rate.")] = 4e-4,
    epochs: Annotated[int, typer.Option("--epochs", min=1, max=10_000, help="Passes over the training examples.")] = 3,
    batch_size: options.BatchSize = 16,
    gradient_accumulation: Annotated[
        int, typer.Option("--gradient-accumulation", min=1, help="Batches whose gradients are added up before a step.")
    ] = 1,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Keep fewer activations: less memory, a third more time."),
    ] = False,
    max_length: options.MaxLength = None,
    skip_long: options.SkipLong = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Number of training examples (a seeded draw). Default: all.", show_default=False
        ),
    ] = None,
    dev_limit: Annotated[
        int | None,
        typer.Option(
            "--dev-limit", min=1, help="Number of dev examples (the first ones). Default: all.", show_default=False
        ),
    ] = None,
    freeze: Annotated[
        Freeze | None, typer.Option("--freeze", help="Train only the other factor.", show_default=False)
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            "--dropout", min=0, max=0.9, help="Dropout rate of the base model. Default: its own.", show_default=False
        ),
    ] = None,
    head: Annotated[
        HeadInit,
        typer.Option("--head", help="Initialize a new head fitted to the untrained model, or fresh (random)."),
    ] = HeadInit.FITTED,
    interference_penalty: Annotated[
        float | None,
        typer.Option(
            "--interference-penalty",
            metavar="MU",
            min=0,
            help="Weight of the update's energy on the other tasks' inputs in the loss; reads --features. "
            "Default: 3 for a start by gevd, 10 for text; 0 is none.",
            show_default=False,
        ),
    ] = None,
    penalty_unit: Annotated[
        PenaltyUnit,
        typer.Option(
            "--penalty-unit", help="Energy that the penalty is relative to: the base model's, or the update's own."
        ),
    ] = PenaltyUnit.BASE,
    full: Annotated[
        bool, typer.Option("--full", help="Train the layers' whole weights: an adapter of their full rank.")
    ] = False,
    project: Annotated[
        bool,
        typer.Option(
            "--project", help="With --full, train outside of the other tasks' principal subspace; reads --features."
        ),
    ] = False,
    project_energy: Annotated[
        float,
        typer.Option("--project-energy", min=0.01, max=0.999999, help="Share of their energy in that subspace."),
    ] = 0.7,
    features: options.FeaturesFolder = Path("features"),
    keep_best: Annotated[bool, typer.Option("--keep-best", help="Keep the epoch with the best dev score.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an unfinished run from its last checkpoint.")
    ] = False,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.AUTO,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            "--quantize", help="Hold the base model of text tasks in 4 bits (bitsandbytes).", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write <task>/ to.")] = Path(
        "adapters"
    ),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune adapters, each on its own task.

    Example: osrm train starts/mini-mood
    """
    from osrm_cli.models.distributed import process_rank
    from osrm_cli.training.train import train_adapters

    is_first = process_rank() == 0  # under a launcher, one process prints
    console = Console(json, quiet or not is_first)
    trained = train_adapters(
        starts,
        data=options.task_source(data, split_dev),
        model=model,
        revision=revision,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        gradient_checkpointing=gradient_checkpointing,
        max_length=max_length,
        skip_long=skip_long,
        limit=limit,
        dev_limit=dev_limit,
        freeze=freeze,
        dropout=dropout,
        head=head,
        interference_penalty=interference_penalty,
        penalty_unit=penalty_unit,
        full=full,
        project=project,
        project_energy=project_energy,
        features=features,
        keep_best=keep_best,
        resume=resume,
        seed=seed,
        device=device,
        dtype=dtype,
        quantize=quantize,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    for warning in trained.warnings if is_first else ():
        console.warn(warning)
    if dry_run:
        lines = [
            f"would write {path}: {trained.examples[task]} examples of {task}" for task, path in trained.paths.items()
        ]
        console.result({"would_write": [str(path) for path in trained.paths.values()]}, "\n".join(lines))
        return
    if is_first:
        console.result({"adapters": trained.reports}, "\n".join(map(_printed_summary, trained.reports.values())))


def _printed_summary(report: dict[str, Any]) -> str:
    line = f"{report['path']}  dev {report['dev']['headline']:.2f}, "
    if "directions" not in report:
        return f"{line}drift of A {report['drift']['overall']:.1%}"
    least, most = report["directions"].values()
    return f"{line}trained in {least if least == most else f'{least} to {most}'} directions of each layer"
