"""``osrm verify``: artifacts -> what differs from the recorded digests."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, align_console_columns
from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    from osrm_cli.verification.verify import Verification


def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders or files that osrm wrote, or folders of them.", show_default=False)
    ],
    ignore_missing: Annotated[
        bool, typer.Option("--ignore-missing", help="Accept inputs that are no longer there.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check every recorded digest of artifacts and of their inputs.

    Exit code 1 if a file, an input, a base model or data differs or is missing.

    Example: osrm verify merged
    """
    from osrm_cli.verification.verify import DIFFERS, verify_artifacts

    console = Console(json, quiet)
    found = verify_artifacts(paths, progress=console.progress)
    console.result(
        {"counts": found.counts, "checks": [asdict(check) for check in found.checks]}, _console_output(found)
    )
    failures = [check for check in found.failures if check.result == DIFFERS or not ignore_missing]
    if failures:
        differing, missing = found.counts["differs"], 0 if ignore_missing else found.counts["missing"]
        raise OsrmError(
            f"of {len(found.checks)} recorded digests {differing} differ and {missing} cannot be compared, "
            f"first {failures[0].kind} {failures[0].name}",
            "restore the files, or recreate what was made from them; --ignore-missing accepts inputs that are gone",
        )


def _console_output(found: "Verification") -> str:
    rows = [
        (
            check.result,
            check.kind,
            check.name,
            f"recorded by {check.artifact}" + f": {check.reason}" * bool(check.reason),
        )
        for check in found.failures
    ]
    same = f"{found.counts['same']} of {len(found.checks)} recorded digests are the same"
    return "\n".join([*([align_console_columns(rows)] if rows else []), same])
