"""Trace an adapter to its initialization: how far A has drifted, and whether it was applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.initialization.from_features import iter_layer_problems
from osrm_cli.initialization.objectives.table import find_objective
from osrm_cli.linalg import subspaces
from osrm_cli.linalg.subspaces import subspace_overlap
from osrm_cli.storage import input_files

_MAX_RELATIVE_ENERGY = 0.5  # of the features that A avoids, relative to a random A of the same norm
_RANDOM_FACTOR = 2.0  # row spaces that overlap at most so many times as random ones have nothing in common


@dataclass
class InitializationTrace:
    """The initialization of one adapter, as far as it is known.

    Attributes:
        objective: How its A was chosen.
        path: Its folder, if that exists and has not changed.
        drift: Procrustes distance of A from it, over its norm.
        drift_from: ``start`` if that was computed, ``training.json`` if training recorded it.
        kept: Overlap of A's row space with the initial one, mean over the layers: 1 if equal, ``chance`` if random.
        chance: ``r / d_in``.
        caught: Energy that the initial A captures of the features it avoids, relative to a random A of its norm.
        concerns: Reasons to doubt that it was applied, or that it was made from these features.
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
    """Find an adapter's initialization and compare the adapter with it.

    Args:
        adapter: Of any program; what is not recorded stays unknown.
        features: Features that the initialization avoids.
        digests: SHA-256 of these files by task.
    """
    settings = adapter.record.get("start") or (adapter.record.get("settings") if _is_start(adapter) else None) or {}
    start = adapter if _is_start(adapter) else _find_start_to_diagnose(adapter)
    if start is None:
        drift_from = None if adapter.drift is None else "training.json"
        return InitializationTrace(settings.get("objective"), drift=adapter.drift, drift_from=drift_from)
    settings = start.record.get("settings") or settings
    trace = InitializationTrace(settings.get("objective"), start.folder.as_posix())
    pairs = {
        layer: (start.lora_factors(layer).A, adapter.lora_factors(layer).A)
        for layer in adapter.layers
        if layer in start.layers and start.layers[layer].rank == adapter.layers[layer].rank
    }
    if pairs and start is not adapter:
        moved = subspaces.relative_procrustes_distances(
            {k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}
        )
        trace.drift, trace.drift_from = moved.overall, "start"
        trace.kept = _mean_over_diagnosed_layers([subspace_overlap(*pair) for pair in pairs.values()])
        trace.chance = _mean_over_diagnosed_layers([A.shape[0] / A.shape[1] for A, _ in pairs.values()])
    trace.caught = _diagnose_start_energy(start, features, settings)
    trace.concerns = _find_origin_concerns(adapter, start, trace, digests)
    return trace


def _is_start(adapter: Adapter) -> bool:
    return adapter.record.get("command") == "init"


def _find_start_to_diagnose(adapter: Adapter) -> Adapter | None:
    """The start that ``osrm train`` recorded, if it exists and has not changed."""
    source: Mapping[str, Any] = next(iter(adapter.record.get("inputs") or ()), {})
    path = Path(source.get("path") or "")
    if adapter.record.get("command") != "train" or not source.get("path") or not path.is_dir():
        return None
    if input_files.sha256(path) != source.get("sha256"):
        return None
    try:
        return open_adapter(path)
    except OsrmError:
        return None


def _diagnose_start_energy(start: Adapter, features: FeatureSet, settings: Mapping[str, Any]) -> float | None:
    """Energy that a start captures of the statistic that it was made from, relative to a random A."""
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
    except (KeyError, OsrmError):  # not made by this program, or features that cannot serve the objective
        return None
    return _mean_over_diagnosed_layers(shares) if shares else None


def _find_origin_concerns(
    adapter: Adapter, start: Adapter, trace: InitializationTrace, digests: Mapping[str, str]
) -> list[str]:
    concerns = []
    if trace.caught is not None and trace.caught > _MAX_RELATIVE_ENERGY:
        concerns.append(
            f"{start.source}: A captures {trace.caught:.2g} times the energy that a random A captures of the "
            f"features that '{trace.objective}' avoids: it was not made from these features"
        )
    known = {entry["sha256"] for entry in start.record.get("inputs") or () if entry.get("sha256")}
    others = [name for name, digest in digests.items() if name != start.name and digest not in known]
    if known and others:
        concerns.append(f"{start.source}: not made from these features of {', '.join(others)}")
    if trace.kept is not None and trace.chance is not None and trace.kept < min(_RANDOM_FACTOR * trace.chance, 0.5):
        concerns.append(
            f"{adapter.source}: A shares {trace.kept:.0%} of its directions with its start, a random A "
            f"{trace.chance:.0%}: training left nothing of the start, or it was not applied"
        )
    return concerns


def _mean_over_diagnosed_layers(values: list[float]) -> float:
    return sum(values) / len(values)
