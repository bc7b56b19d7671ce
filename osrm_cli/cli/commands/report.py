"""``osrm report``: scores.json and sweep.json -> report/, or one table."""

from pathlib import Path
from typing import Annotated

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console
from osrm_cli.errors import OsrmError


def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="scores.json, sweep.json and diagnosis.json, folders that hold them, or a table of --table.",
            show_default=False,
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="NAME=PATH",
            help="Arm that the file, folder or pattern of files belongs to; repeat for more. "
            "Default: adapters made alike are one arm.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PATTERN",
            help="Files to use; repeat for more. Default: all.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="Arm to compare with: its name or objective. Default: kaiming.", show_default=False
        ),
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Resamples of an interval.")] = 2000,
    seed: options.Seed = 0,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", help="Parquet file to write instead: all scores in one compressed table.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write.")] = Path("report"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare scores of many merges in tables, intervals and plots.

    Example: osrm report merged
    """
    from osrm_cli.reporting.write import write_report, write_report_table

    console = Console(json, quiet)
    arms = list(map(_parse_arm_option, arm or []))
    if not files and not arms:
        raise typer.BadParameter("give files of scores, or arms of them", param_hint="FILES, --arm")
    if table is not None:
        result = write_report_table(
            files or [], table, arms=arms, only=only or [], overwrite=overwrite, dry_run=dry_run
        )
    else:
        result = write_report(
            files or [],
            arms=arms,
            only=only or [],
            baseline=baseline,
            resamples=resamples,
            seed=seed,
            out=out,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    if dry_run:
        names = f", arms {', '.join(result.arms)}" if result.arms else ""
        plan = f"would write {result.path}: {result.files} files of scores{names}"
        console.result({"would_write": [str(result.path)]}, plan)
        return
    for note in result.record.get("notes", []):
        console.note(note)
    lines = [*result.record["summary"], f"{result.path}/report.html"] if result.record else [str(result.path)]
    console.result({"path": str(result.path), **result.record}, "\n".join(lines))


def _parse_arm_option(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise OsrmError(f"--arm {text}: expected NAME=PATH", "--arm plain=sweeps/kaiming")
    return name, path
