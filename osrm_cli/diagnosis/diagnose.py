"""Diagnose where tasks interfere: features, and perhaps adapters and scores -> ``diagnosis/``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.diagnosis.adapter_origin import trace_initialization
from osrm_cli.diagnosis.feature_overlap import measure_overlap
from osrm_cli.diagnosis.interference import measure_interference
from osrm_cli.diagnosis.score_drops import read_score_drops
from osrm_cli.diagnosis.write import AdapterDiagnosis, diagnosis_dict, write_diagnosis
from osrm_cli.errors import OsrmError, check_number
from osrm_cli.features.adapter_match import check_features_match, open_adapters_for_features
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.models.base_model import identify_base_model, resolve_base_model
from osrm_cli.models.full.sources import is_full_model
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found.

    Attributes:
        path: The folder that was written, or would be.
        tasks: Tasks whose features were read.
        adapters: Sources of the adapters that were read.
        findings: What ``diagnosis.json`` says; empty under ``dry_run``.
        warnings: Reasons to doubt the findings.
    """

    path: Path
    tasks: Sequence[str]
    adapters: Sequence[str]
    findings: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def diagnose(
    features: Path | str = "features",
    adapters: Sequence[Path | str] = (),
    *,
    scores: Sequence[Path | str] = (),
    energy: float = 0.99,
    tasks: Sequence[str] = (),
    model: str | None = None,
    revision: str | None = None,
    out: Path | str = "diagnosis",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Diagnosis:
    """Measure how far tasks share their directions, and what adapters do to one another's inputs.

    Args:
        features: Folder of features files of two tasks or more.
        adapters: Adapters of these tasks: folders or hub ids; or folders of full models.
        scores: ``scores.json`` or ``sweep.json`` of merges of the adapters.
        energy: Share of a task's energy that its principal subspace holds.
        tasks: ``TASK=ADAPTER`` for adapters that are not named after their task.
        model: The base model, where it lies elsewhere now.
        revision: Its revision.
        out: Folder to write.
        overwrite: Replace it if it exists.
        dry_run: Check everything and write nothing.
        progress: Draws bars.

    Raises:
        OsrmError: If features, adapters, scores or base model are missing, damaged or do not fit.

    Example:
        >>> from osrm_cli import diagnose
        >>> round(diagnose("features").findings["tasks"]["mini-mood"]["gain"], 1)
        33.7
    """
    check_number("energy", energy, 0.01, 1)
    if scores and not adapters:
        raise OsrmError(
            "--scores needs the adapters that were merged", "osrm diagnose features adapters/* --scores ..."
        )
    path, score_paths = Path(out), [Path(each) for each in scores]
    feature_set = FeatureSet.open(features).select(consumer="diagnose")
    if len(feature_set.tasks) < 2:
        raise OsrmError(f"{features} holds features of one task alone", "osrm collect --task OTHER")
    sources = [str(adapter) for adapter in adapters]
    full_base = None
    if any(map(is_full_model, sources)):
        full_base = identify_base_model(model, revision) if model else feature_set.base
    opened = open_adapters_for_features(sources, tasks, full_base)
    check_features_match(opened, feature_set)
    merges = [merge for each in score_paths for merge in read_score_drops(each)]
    base_dir = _find_diagnosed_base(opened, feature_set, model, revision) if opened else None
    atomic.refuse_existing(path, overwrite)
    sources = [adapter.source for adapter in opened]
    if dry_run:
        return Diagnosis(path, feature_set.tasks, sources)
    record = _make_diagnosis_record(feature_set, opened, score_paths, {"energy": energy})
    with progress("diagnose features", len(feature_set.groups()), "inputs") as advance:
        groups = measure_overlap(feature_set, energy, advance)
    trained = None
    if base_dir:
        digests = {task: entry["sha256"] for task, entry in zip(feature_set.tasks, record["inputs"], strict=False)}
        layers = len({name for adapter in opened for name, layer in adapter.layers.items() if not layer.is_tensor})
        with progress("diagnose adapters", layers, "layers") as advance:
            interference = measure_interference(opened, feature_set, base_dir, advance)
        origins = {adapter.name: trace_initialization(adapter, feature_set, digests) for adapter in opened}
        trained = AdapterDiagnosis(interference, origins, merges)
    findings = diagnosis_dict(feature_set, groups, trained)
    with atomic.write_folder(path, overwrite) as stage:
        write_diagnosis(stage, findings, record, energy)
    concerns = [concern for adapter in findings.get("adapters", {}).values() for concern in adapter["concerns"]]
    return Diagnosis(path, feature_set.tasks, sources, findings, findings["warnings"] + concerns)


def _find_diagnosed_base(
    adapters: Sequence[Adapter], features: FeatureSet, model: str | None, revision: str | None
) -> Path:
    """The base model's folder: it must be the one that adapters and features record."""
    reference = next((adapter for adapter in adapters if adapter.base), None)
    artifact = reference.folder if reference else features.paths[0]
    recorded = reference.base if reference else features.base
    return resolve_base_model(artifact, recorded, None, model, revision)[0]


def _make_diagnosis_record(
    features: FeatureSet, adapters: Sequence[Adapter], scores: Sequence[Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    record = provenance.make_artifact_record("diagnose", settings, [*features.paths, *scores], base=features.base)
    read = [{"path": a.source, "commit": a.commit, "sha256": a.sha256()} for a in adapters]
    return {**record, "inputs": record["inputs"] + read}
