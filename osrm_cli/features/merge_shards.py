"""Merge shards of features files: ``features/<task>.shard-*.safetensors`` -> ``features/<task>.safetensors``."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import describe_features, write_features
from osrm_cli.features.shards import MergedShards, longest_statistic_bounds, sharded_tasks, with_statistic_bounds
from osrm_cli.storage import atomic
from osrm_cli.tasks.task import check_task_name


@dataclass(frozen=True)
class ShardMerge:
    """What ``merge_shards`` did.

    Attributes:
        paths: File of each task that was written, or would be.
        shards: Number of shards, by task.
        files: By task, what was written: ``path``, ``examples``, ``tokens``, ``layers``; empty under ``dry_run``.
    """

    paths: Mapping[str, Path]
    shards: Mapping[str, int]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def merge_shards(
    tasks: Sequence[str] = (), folder: Path | str = "features", *, overwrite: bool = False, dry_run: bool = False
) -> ShardMerge:
    """Write one features file from all shards of each task: of all tasks, or of none if one fails.

    Args:
        tasks: Names of the tasks; all that the folder holds shards of by default.
        folder: Where the shards are, and where the files go.
        overwrite: Replace files that exist.
        dry_run: Check everything and write nothing.

    Raises:
        OsrmError: If there are no shards, one is missing or damaged, or they do not fit together.

    Example:
        >>> from osrm_cli import merge_shards, collect_features
        >>> shards = [collect_features(["mini-mood"], "mini", shard=f"{i}/2", out="shards") for i in (1, 2)]
        >>> merge_shards(["mini-mood"], "shards").shards
        {'mini-mood': 2}
    """
    folder = Path(folder)
    for name in tasks:
        check_task_name(name)
    paths = {name: folder / f"{name}.safetensors" for name in tasks or sharded_tasks(folder)}
    if not paths:
        raise OsrmError(f"{folder} holds no shards", "make them: osrm collect --task NAME --shard 1/2")
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    merged = {name: MergedShards(path) for name, path in paths.items()}
    result = ShardMerge(paths, {name: len(parts.paths) for name, parts in merged.items()})
    if dry_run:
        return result
    with ExitStack() as stages:
        for name, path in paths.items():
            parts, bounds = merged[name], dict[str, dict[str, float]]()
            write_features(
                stages.enter_context(atomic.write_file(path, overwrite)),
                parts.names,
                parts.tensors(bounds),
                partial(with_statistic_bounds, parts.record, bounds),
                with_statistic_bounds(parts.record, longest_statistic_bounds(parts.names)),
            )
    result.files.update({name: describe_features(path, merged[name].record) for name, path in paths.items()})
    return result
