"""The folder of an unfinished run: its checkpoints and its record."""

import json
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.storage import atomic, provenance


def prepare_checkpoint_folder(folder: Path, record: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder for checkpoints, or check that an existing one belongs to the same run.

    Raises:
        OsrmError: If there is an unfinished run that is not to be resumed, or has different settings.
    """
    if folder.exists() and not (resume or overwrite):
        raise OsrmError(
            f"{folder} contains an unfinished run", "continue it with --resume, or start over with --overwrite"
        )
    if folder.exists() and resume:
        recorded = provenance.read_record(folder)
        if recorded != record:
            name = next(key for key in sorted(record) if recorded.get(key) != record[key])
            raise OsrmError(
                f"{folder} contains an unfinished run with different {name}",
                "give the same options, or start over with --overwrite",
            )
        return
    with atomic.write_folder(folder, overwrite=True) as stage:
        provenance.write_record(stage, record)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of an unfinished run; an incomplete one lacks the file that is written last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((path for path in checkpoints if _is_complete(path / "trainer_state.json")), None)


def _is_complete(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
