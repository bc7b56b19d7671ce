"""Read an adapter's ``training.json``: its dev scores and the drift of A."""

from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.storage.regular_file import read_json


def recorded_dev_scores(folder: Path) -> dict[str, Any] | None:
    """Examples, digest of the data and scores by metric; ``None`` where they are not recorded."""
    dev = _read_entry(folder, "dev")
    scores = dev.get("scores") if isinstance(dev, dict) else None
    return dev if isinstance(scores, dict) and all(isinstance(x, int | float) for x in scores.values()) else None


def recorded_drift(folder: Path) -> float | None:
    """How far A moved in training, see ``linalg.subspaces``; ``None`` where it is not recorded."""
    drift = _read_entry(folder, "drift")
    overall = drift.get("overall") if isinstance(drift, dict) else None
    return float(overall) if isinstance(overall, int | float) else None


def _read_entry(folder: Path, name: str) -> Any:
    try:
        log = read_json(folder / "training.json", "", finite=True)
    except OsrmError:
        return None
    return log.get(name) if isinstance(log, dict) else None
