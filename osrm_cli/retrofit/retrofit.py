"""Make existing adapters mergeable without changing their ranks: ``adapters/*`` -> ``retrofitted/<task>/``."""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.tokenizer_files import copy_tokenizer_files, find_tokenizer_files
from osrm_cli.adapters.writer import write_adapter
from osrm_cli.errors import OsrmError, check_number
from osrm_cli.features.adapter_match import check_features_match, open_adapters_for_features
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.initialization.objectives.table import find_objective
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.progress import Progress, no_progress
from osrm_cli.retrofit.factors import (
    RetrofitChange,
    measure_retrofit_changes,
    retrofit_by_balancing,
    retrofit_by_projection,
)
from osrm_cli.storage import atomic, provenance

METHODS = ("balanced", "projection")
_LARGE_CHANGE = 0.5  # of the update on its own inputs


@dataclass(frozen=True)
class RetrofittedAdapters:
    """What ``retrofit_adapters`` did.

    Attributes:
        paths: Folder of each adapter that was written, or would be, by task.
        tasks: Tasks whose features were read.
        settings: Method and its options.
        changes: How the retrofit changed each update; empty under ``dry_run``.
        warnings: Reasons to doubt the result.
    """

    paths: Mapping[str, Path]
    tasks: Sequence[str]
    settings: Mapping[str, Any]
    changes: dict[str, RetrofitChange] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def retrofit_adapters(
    adapters: Sequence[Path | str],
    features: Path | str = "features",
    *,
    method: str = "balanced",
    mu: float = 0.3,
    objective: str = "osrm",
    eps: float = 1e-3,
    tasks: Sequence[str] = (),
    seed: int = 0,
    out: Path | str = "retrofitted",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> RetrofittedAdapters:
    """Give existing adapters factors of the same ranks that interfere less; settings, heads and types stay.

    The folders of all adapters are written, or none.

    Args:
        adapters: Folders or hub ids, of any program.
        features: Folder of features files of these tasks, and perhaps of others.
        method: ``balanced``: B stays, A is solved for. ``projection``: A is chosen by an objective, B is fitted.
        mu: ``balanced``: cost of the other tasks' interference.
        objective: ``projection``: how A is chosen.
        eps: ``projection`` with ``gevd``: weight of the identity.
        tasks: ``TASK=ADAPTER`` for adapters that are not named after their task.
        seed: ``projection``: of every random draw.
        out: Folder to write ``<task>/`` to.
        overwrite: Replace folders that exist.
        dry_run: Check everything and write nothing.
        progress: Draws bars.

    Raises:
        OsrmError: If adapters or features are missing, damaged or do not fit, or an option has no valid value.

    Example:
        >>> from osrm_cli import retrofit_adapters
        >>> result = retrofit_adapters(["adapters/mini-inference", "adapters/mini-mood"], mu=0.1)
        >>> round(result.changes["mini-mood"].others, 2)
        0.4
    """
    if method not in METHODS:
        raise OsrmError(f"unknown method '{method}', expected one of: {', '.join(METHODS)}")
    check_number("mu", mu, 0)
    check_number("eps", eps, 0)
    row = find_objective(objective)
    opened = open_adapters_for_features([str(adapter) for adapter in adapters], tasks)
    feature_set = FeatureSet.open(features)
    check_features_match(opened, feature_set)
    feature_set.other_tasks(feature_set.tasks[0])
    # A mean, or a few of them, does not say what an update may not lose.
    kinds = ((SECOND_MOMENT, "sketch"), "method balanced") if method == "balanced" else ()
    feature_set = feature_set.select(*kinds)
    paths = {adapter.name: Path(out) / adapter.name for adapter in opened}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    options = {"mu": mu} if method == "balanced" else {"objective": row.name, "eps": eps, "seed": seed}
    result = RetrofittedAdapters(paths, feature_set.tasks, {"method": method, **options})
    if dry_run:
        return result
    factors = (
        retrofit_by_balancing(opened, feature_set, mu)
        if method == "balanced"
        else retrofit_by_projection(opened, feature_set, row, seed, eps)
    )
    new: dict[str, dict[str, LowRank]] = defaultdict(dict)
    with progress(f"retrofit {method}", sum(len(adapter.layers) for adapter in opened), "layers") as advance:
        for adapter, layer, update in factors:
            new[adapter.name][layer] = update
            advance(1)
    result.changes.update(measure_retrofit_changes(new, opened, feature_set))
    concerns = _warn_of_balanced_retrofit(feature_set) if method == "balanced" else []
    with ExitStack() as stages:
        for adapter in opened:
            change = vars(result.changes[adapter.name])
            facts = {"changed": change, "statistic": feature_set.kind, "concerns": concerns}
            stage = stages.enter_context(atomic.write_folder(paths[adapter.name], overwrite))
            _write_retrofitted_adapter(stage, adapter, new[adapter.name], feature_set, result.settings, facts)
    result.warnings.extend([*concerns, *_warn_of_large_retrofit_changes(result.changes)])
    return result


def _warn_of_balanced_retrofit(features: FeatureSet) -> list[str]:
    """Reasons to doubt what ``balanced`` makes of these features."""
    if features.kind == "sketch":
        seen = sum(int(name.partition(":")[2]) for name in features.statistics.values())
        source = f"the sketches hold {seen} rows"
    else:
        seen = sum(file.tokens for file in features.files.values())
        source = f"the features come from {seen} tokens"
    if seen >= features.max_width:
        return []
    unseen = "directions that no task shows count as shared by all; collect more"
    return [f"{source} for inputs of width {features.max_width}: {unseen}"]


def _warn_of_large_retrofit_changes(changes: Mapping[str, RetrofitChange]) -> list[str]:
    return [
        f"{name}: {change.own:.0%} of the update on its own inputs has changed, so its own score will suffer; "
        "--method balanced with a smaller --mu keeps more"
        for name, change in changes.items()
        if change.own > _LARGE_CHANGE
    ]


def _write_retrofitted_adapter(
    stage: Path,
    adapter: Adapter,
    new: Mapping[str, LowRank],
    features: FeatureSet,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write an adapter with its task, data and length, so that ``osrm eval`` scores it as it scores the old one.

    Args:
        stage: An existing, empty folder that is being staged.
        adapter: The old one.
        new: New factors by layer, as they are to be stored.
        features: Features that they were computed from.
        settings: Of the retrofit.
        facts: What the record says of the result.
    """
    own = features.files[adapter.name]
    origin = {key: value for key, value in adapter.origin().items() if key in ("start", "train")}
    record = provenance.make_artifact_record(
        "retrofit",
        {**settings, "max_length": (adapter.record.get("settings") or {}).get("max_length")},
        features.paths,
        base=adapter.base or own.base,
        task=adapter.record.get("task") or own.record["task"],
        data=adapter.record.get("data") or {"source": (own.record.get("data") or {}).get("source")},
        **origin,
        **facts,
    )
    old = {"path": adapter.source, "commit": adapter.commit, "sha256": adapter.sha256()}
    write_adapter(stage, new.items(), adapter.config, adapter.tensors_beside_factors(), adapter.dtype)
    if adapter.format == "peft":
        # Ranks and scaling are the old ones, so the settings are too, down to those that this program does not use.
        shutil.copyfile(adapter.folder / CONFIG_NAME, stage / CONFIG_NAME)
    copy_tokenizer_files(find_tokenizer_files([adapter])[0], stage)
    provenance.write_record(stage, {**record, "inputs": [old, *record["inputs"]]})
    provenance.write_digests(stage)
