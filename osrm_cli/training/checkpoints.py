"""The folder of a run that is not done: its checkpoints, and which run they belong to."""

import json
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.storage import atomic, provenance


def prepare_checkpoint_folder(work: Path, facts: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder for checkpoints, or check that the one found belongs to the same run.

    Raises:
        OsrmError: If there is an unfinished run, and not the one to go on with.
    """
    if work.exists() and not (resume or overwrite):
        raise OsrmError(f"{work} holds an unfinished run", "go on with --resume, or start over with --overwrite")
    if work.exists() and resume:
        held = provenance.read_record(work)
        if held != facts:
            name = next(key for key in sorted(facts) if held.get(key) != facts[key])
            raise OsrmError(
                f"{work} holds an unfinished run with other {name}",
                "give the same options, or start over with --overwrite",
            )
        return
    with atomic.write_folder(work, overwrite=True) as stage:
        provenance.write_record(stage, facts)


def newest_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint of an unfinished run; one that was cut short lacks the file that is written last."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((path for path in found if _is_complete(path / "trainer_state.json")), None)


def _is_complete(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
