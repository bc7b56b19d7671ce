"""``osrm convert``: an adapter of one program -> another program's."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from osrm_cli.adapters.formats.table import FORMATS
from osrm_cli.cli import options
from osrm_cli.cli.console import Console


def convert(
    adapter: Annotated[str, typer.Argument(help="Adapter folder, LoRA file or hub id, of any program.")],
    out: Annotated[Path, typer.Argument(help="What to write: a folder, or a file that ends in .safetensors.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="Format to write: peft or mlx (a folder), diffusers or kohya (a file).",
            autocompletion=options.shell_completer(FORMATS),
        ),
    ] = "peft",
    component: Annotated[
        str | None,
        typer.Option(
            "--component",
            help="Part of a pipeline: the one to take, or the one that the layers are of; unet, text_encoder, ...",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Cut every layer to this rank.", show_default=False)
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", min=0, max=1, help="Cut every layer to this share of its energy.", show_default=False),
    ] = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    dtype: Annotated[
        options.DType, typer.Option("--dtype", help="Type of the factors; auto keeps it.")
    ] = options.DType.AUTO,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert an adapter between PEFT, diffusers, kohya and MLX.

    LoHa, LoKr, DoRA and trained tokens become plain LoRA.

    Example: osrm convert style.safetensors style
    """
    from osrm_cli.conversion.convert import convert_adapter

    console = Console(json, quiet)
    result = convert_adapter(
        adapter,
        out,
        format,
        component=component,
        rank=rank,
        energy=energy,
        model=model,
        revision=revision,
        dtype=dtype.value,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    low, high = result.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    source = result.source_format + (f" ({result.source_kind})" if result.source_kind != "LoRA" else "")
    cut = f", {result.kept_energy:.1%} of the energy or more" if result.kept_energy < 1 else ""
    line = f"{result.layers} layers of {ranks}, {result.dtype}: {source} to {result.format}{cut}"
    record = {**asdict(result), "path": str(result.path)}
    if dry_run:
        console.result({"would_write": str(out), **record}, f"would write {out}: {line}")
    else:
        console.result(record, f"{out}: {line}")
    if result.left_out:
        console.note(f"left out of the header: {', '.join(result.left_out)}")
