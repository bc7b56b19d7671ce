"""``osrm extract``: base model, fine-tuned model -> extracted/<name>/."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType

if TYPE_CHECKING:
    from rich.table import Table

    from osrm_cli.extraction.extract import ExtractedAdapter


def extract(
    base: Annotated[str, typer.Argument(help="Base model: a folder, a hub id, 'minilm' or 'smollm2'.")],
    finetuned: Annotated[
        str, typer.Argument(help="Fully fine-tuned model: a folder, a hub id, or OWNER/NAME@REVISION.")
    ],
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            "-r",
            metavar="NUMBER or auto:SHARE",
            help="Largest rank, or for each layer the one that keeps this share of its energy; default 32.",
            show_default=False,
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", min=0, max=1, help="Share of each layer's energy to keep.", show_default=False),
    ] = None,
    target_modules: Annotated[
        list[str] | None,
        typer.Option("--target-modules", help="Layers to adapt; repeat for more. Default: every linear layer."),
    ] = None,
    keep_rest: Annotated[
        Path | None,
        typer.Option(
            "--keep-rest",
            metavar="FILE",
            help="Write what the adapter does not hold; osrm merge --as model adds it back.",
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    dtype: Annotated[
        DType, typer.Option("--dtype", envvar="OSRM_DTYPE", help="Type of the factors; auto is float32.")
    ] = DType.AUTO,
    device: options.DeviceOption = Device.AUTO,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", "--output", help="Folder to write; default extracted/NAME of the model.", show_default=False
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Extract a LoRA adapter from a fully fine-tuned model.

    Example: osrm extract minilm my-model --rank 32 --out adapters/mine
    """
    from osrm_cli.extraction.extract import extract_adapter

    console = Console(json, quiet)
    result = extract_adapter(
        base,
        finetuned,
        rank=rank,
        energy=energy,
        target_modules=target_modules or (),
        keep_rest=keep_rest,
        revision=revision,
        dtype=dtype.value,
        device=device.value,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    for warning in result.warnings:
        console.warn(warning)
    record = _console_json(result)
    if dry_run:
        record = {"would_write": str(result.path), **record}
    console.result(record, _make_rich_table(result, dry_run))
    for note in result.notes:
        console.note(note)


def _console_json(result: "ExtractedAdapter") -> dict[str, Any]:
    """The result as JSON has it."""
    record: dict[str, Any] = {
        "path": str(result.path),
        "layers": len(result.layers),
        "held": result.held,
        "energy": {kind: vars(row) for kind, row in result.kinds.items()},
        "heads": list(result.heads),
        "labels": list(result.labels),
        "added_rows": dict(result.added_rows),
    }
    if result.ranks:
        kept = list(result.kept.values())
        record |= {
            "rank": max(result.ranks.values()),
            "kept_energy": {"least": min(kept), "mean": sum(kept) / len(kept)},
        }
    return record


def _make_rich_table(result: "ExtractedAdapter", dry_run: bool) -> "Table":
    ranks = sorted(set(result.ranks.values()))
    text = f"rank {' to '.join(map(str, (ranks[0], ranks[-1])[: len(ranks)]))}, " if ranks else ""
    title = f"{'would write ' if dry_run else ''}{result.path}: {text}{len(result.layers)} layers"
    rows = table("tensors", "that differ", "share of the energy", "not held", title=title)
    for kind, row in result.kinds.items():
        rows.add_row(kind, str(row.tensors), f"{row.share:.2%}", f"{row.lost:.2%}")
    rows.add_row("all", str(sum(row.tensors for row in result.kinds.values())), "100.00%", f"{1 - result.held:.2%}")
    return rows
