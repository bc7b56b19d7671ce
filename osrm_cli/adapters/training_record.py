"""What an adapter's files say of its initialization, training, dev scores and drift."""

import json
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter


def recorded_dev_scores(adapter: Adapter) -> dict[str, Any] | None:
    """What ``osrm train`` recorded of an adapter's own dev scores: examples, digest of the data, scores by metric."""
    try:
        found = json.loads((adapter.folder / "training.json").read_text(encoding="utf-8"))["dev"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("scores"), dict) else None


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """An adapter as scores name it: where it lies, its origin, and its drift."""
    place = {"path": adapter.source, "sha256": adapter.sha256()}
    return {**place, **recorded_origin(adapter), "drift": recorded_drift(adapter.folder)}


def recorded_origin(adapter: Adapter) -> dict[str, Any]:
    """The settings of the start that an adapter was trained from, of its training, and of its repair if it had one.

    What this program has not recorded is ``None``.
    """
    facts = adapter.record
    own = {facts.get("command"): facts.get("settings")}
    found = {"start": facts.get("start"), "train": own.get("train", facts.get("train"))}
    return {**found, "retrofit": own["retrofit"]} if "retrofit" in own else found


def recorded_drift(folder: Path) -> float | None:
    """How far A moved in training, as ``osrm train`` recorded it."""
    try:
        found = json.loads((folder / "training.json").read_text(encoding="utf-8"))["drift"]["overall"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) else None
