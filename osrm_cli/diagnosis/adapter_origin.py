"""What has become of an adapter's start: how far A has drifted, and whether it keeps off what it was to keep off."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters import training_record
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.initialization.from_features import iter_layer_problems
from osrm_cli.initialization.objectives.table import find_objective
from osrm_cli.linalg import subspaces
from osrm_cli.linalg.subspaces import subspace_overlap
from osrm_cli.storage import provenance

_MAX_RELATIVE_ENERGY = 0.5  # a start that avoids features catches less of them than this share of what a random A does
_RANDOM_FACTOR = 2.0  # row spaces that overlap no more than so many times as random ones have nothing in common


@dataclass
class InitializationTrace:
    """The start of one adapter, as far as it is known.

    Attributes:
        objective: How its A was chosen.
        path: Where it lies, if it is there and has not changed.
        drift: Procrustes distance of A from it, over its norm.
        drift_from: ``start`` if that was computed, ``training.json`` if training recorded it.
        kept: Overlap of A's row space with the start's, mean over the layers: 1 for the same, ``chance`` for random.
        chance: ``r / d_in``.
        caught: What the start catches of the features it was to avoid, in units of what a random A of its norm does.
        concerns: Reasons to doubt that it was applied, or that these are its features.
    """

    objective: str | None = None
    path: str | None = None
    drift: float | None = None
    drift_from: str | None = None
    kept: float | None = None
    chance: float | None = None
    caught: float | None = None
    concerns: list[str] = field(default_factory=list)


def trace_initialization(adapter: Adapter, features: FeatureSet, digests: Mapping[str, str]) -> InitializationTrace:
    """Find an adapter's start and test it.

    Args:
        adapter: Of any program; what nobody recorded stays unknown.
        features: Features that the start is to avoid.
        digests: SHA-256 of these files by task.
    """
    settings = adapter.record.get("start") or (adapter.record.get("settings") if _is_start(adapter) else None) or {}
    held = adapter if _is_start(adapter) else _recorded(adapter)
    if held is None:
        drift = training_record.recorded_drift(adapter.folder)
        return InitializationTrace(
            settings.get("objective"), drift=drift, drift_from=None if drift is None else "training.json"
        )
    settings = held.record.get("settings") or settings
    found = InitializationTrace(settings.get("objective"), held.folder.as_posix())
    pairs = {
        layer: (held.lora_factors(layer).A, adapter.lora_factors(layer).A)
        for layer in adapter.layers
        if layer in held.layers and held.layers[layer].rank == adapter.layers[layer].rank
    }
    if pairs and held is not adapter:
        moved = subspaces.measure_drift({k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()})
        found.drift, found.drift_from = moved.overall, "start"
        found.kept = _mean([subspace_overlap(*pair) for pair in pairs.values()])
        found.chance = _mean([A.shape[0] / A.shape[1] for A, _ in pairs.values()])
    found.caught = _relative_energy(held, features, settings)
    found.concerns = _concerns(adapter, held, found, digests)
    return found


def _is_start(adapter: Adapter) -> bool:
    return adapter.record.get("command") == "init"


def _recorded(adapter: Adapter) -> Adapter | None:
    """The start that ``osrm train`` recorded, if it is still there and the same."""
    source: Mapping[str, Any] = next(iter(adapter.record.get("inputs") or ()), {})
    path = Path(source.get("path") or "")
    if adapter.record.get("command") != "train" or not source.get("path") or not path.is_dir():
        return None
    if provenance.sha256(path) != source.get("sha256"):
        return None
    try:
        return Adapter.open(path)
    except OsrmError:
        return None


def _relative_energy(start: Adapter, features: FeatureSet, settings: Mapping[str, Any]) -> float | None:
    """The start against the very statistic that it was made from."""
    try:
        row = find_objective(settings["objective"])
        if not row.needs_others:
            return None
        seed, eps, statistic = settings["seed"], settings["eps"], settings.get("statistic")
        shares = []
        for problem in iter_layer_problems(features, [start.name], row, 1, seed, eps, statistic):
            if layer := start.layers.get(problem.layer):
                A = start.lora_factors(problem.layer, torch.float64).A  # noqa: N806 - the papers' letter
                norm = float(A.square().sum())
                shares.append(layer.d_in * float(problem.others_energy_share(A).sum()) / norm if norm > 0 else 0.0)
    except (KeyError, OsrmError):  # no start of this program's, or features that could not serve it
        return None
    return _mean(shares) if shares else None


def _concerns(adapter: Adapter, start: Adapter, found: InitializationTrace, digests: Mapping[str, str]) -> list[str]:
    doubts = []
    if found.caught is not None and found.caught > _MAX_RELATIVE_ENERGY:
        doubts.append(
            f"{start.source}: A catches {found.caught:.2g} times what a random one catches of the features that "
            f"'{found.objective}' avoids: they are not the features that it was made from"
        )
    known = {str(entry["sha256"]) for entry in start.record.get("inputs") or ()}
    others = [name for name, digest in digests.items() if name != start.name and digest not in known]
    if known and others:
        doubts.append(f"{start.source}: not made from these features of {', '.join(others)}")
    if found.kept is not None and found.chance is not None and found.kept < min(_RANDOM_FACTOR * found.chance, 0.5):
        doubts.append(
            f"{adapter.source}: A shares {found.kept:.0%} of its directions with its start, random ones "
            f"{found.chance:.0%}: training left nothing of the start, or it was not applied"
        )
    return doubts


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
