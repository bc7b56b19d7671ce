"""``osrm report``: scores.json and sweep.json -> report/."""

from pathlib import Path
from typing import Annotated

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console


def report(
    files: Annotated[
        list[Path], typer.Argument(help="scores.json, sweep.json and diagnosis.json, or folders that hold them.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="Arm to compare with: its name or objective. Default: kaiming.", show_default=False
        ),
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Resamples of an interval.")] = 2000,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("report"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare the scores of many merges: tables, intervals and pictures.

    Example: osrm report merged
    """
    from osrm_cli.reporting import contents, write
    from osrm_cli.reporting.comparison import compare
    from osrm_cli.reporting.inputs import read_inputs
    from osrm_cli.storage import atomic

    console = Console(json, quiet)
    atomic.refuse_existing(out, overwrite)
    given = read_inputs(files)
    comparison = compare(given, baseline, resamples, seed)
    if dry_run:
        arms = ", ".join(arm.label for arm in comparison.arms)
        plan = f"would write {out}: {len(given.files)} files of scores, arms {arms}"
        console.result({"would_write": [str(out)]}, plan)
        return
    settings = {"baseline": baseline, "resamples": resamples, "seed": seed}
    facts = write.facts(comparison, settings)
    with atomic.write_folder(out, overwrite) as stage:
        write.write(stage, contents.contents(comparison, resamples), facts)
    for line in contents.notes(comparison):
        console.note(line)
    console.result({"path": str(out), **facts}, "\n".join([*contents.summary(comparison), f"{out}/report.html"]))
