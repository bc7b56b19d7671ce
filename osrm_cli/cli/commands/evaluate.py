"""``osrm eval``: merged/ -> merged/scores.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType

_SAME_AS_LOSS = ("perplexity", "likelihood")  # in scores.json; the table shows the loss


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A merged folder, or an adapter folder.")] = Path("merged"),
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task to score; repeat for more. Default: all.")
    ] = None,
    data: options.RecordedData = None,
    split_dev: options.SplitDev = None,
    split: Annotated[str, typer.Option("--split", help="Split to score on.")] = "dev",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Examples per task (the first ones). Default: all.", show_default=False),
    ] = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Write every prediction, and the labels.")] = False,
    single: Annotated[bool, typer.Option("--single/--no-single", help="Score the single adapters too.")] = True,
    base: Annotated[
        bool,
        typer.Option("--base", help="Score the base model on text tasks too, to say how much is kept."),
    ] = False,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Write answers to text tasks, or score their loss alone.")
    ] = True,
    harness: Annotated[
        str | None,
        typer.Option(
            "--harness", metavar="TASKS", help="Tasks of lm-evaluation-harness, comma-separated.", show_default=False
        ),
    ] = None,
    harness_path: Annotated[
        Path | None, typer.Option("--harness-path", help="Folder of further tasks in its YAML.", show_default=False)
    ] = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    skip_long: options.SkipLong = False,
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
        data=options.task_source(data, split_dev),
        split=split,
        limit=limit,
        predictions=predictions,
        single=single,
        base=base,
        harness=harness.split(",") if harness else (),
        harness_path=harness_path,
        generate=generate,
        skip_long=skip_long,
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
    console.result({"path": str(result.path), **result.summary}, _make_console_report(result.summary, split))


def _make_console_report(summary: Mapping[str, Any], split: str) -> Any:
    """The table of scores, and under it a few answers to text tasks."""
    from rich.console import Group
    from rich.markup import escape

    lines = []
    for name, row in summary["tasks"].items():
        for sample in row.get("samples", ())[:1]:
            lines += [
                f"{name}: {_shorten_printed_text(sample['prompt'])}",
                f"  answer     {_shorten_printed_text(sample['answer'])}",
            ]
            lines.append(f"  reference  {_shorten_printed_text(sample['reference'])}")
    for name, metrics in summary.get("harness", {}).items():
        values = ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items() if "stderr" not in metric)
        lines.append(f"harness {name}: {values}")
    scores = _make_rich_table(summary, split)
    return Group(scores, escape("\n".join(lines))) if lines else scores


def _make_rich_table(summary: Mapping[str, Any], split: str) -> Any:
    average = summary["average"]
    base = ["base"] if average.get("base") is not None else []
    kept = ["kept"] if base else []
    rows = table("task", *base, "single", "merged", "ratio", *kept, "examples", "metrics", title=f"Scores ({split})")

    def cells(row: Mapping[str, Any]) -> list[str]:
        numbers = [_printed_score(row[name]) for name in (*base, "single", "headline")]
        return [*numbers, _printed_percent(row["ratio"]), *(_printed_percent(row[name]) for name in kept)]

    for name, row in summary["tasks"].items():
        shown = {metric: value for metric, value in row["metrics"].items() if metric not in _SAME_AS_LOSS}
        metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in shown.items())
        rows.add_row(name, *cells(row), str(row["examples"]), metrics)
    rows.add_section()
    rows.add_row("average", *cells(average), "", "")
    return rows


def _shorten_printed_text(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."


def _printed_score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _printed_percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
