"""Shards of a features file: the sums of one of several runs, which add up to the whole.

``features/<task>.shard-<i>-of-<n>.safetensors`` holds the sums behind each statistic as float64 tensors named
``<layer>.<statistic>.<sum>``, and the header of the whole file, but for its counts.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.accumulators import Accumulator
from osrm_cli.features.statistics.table import find_statistic
from osrm_cli.storage import input_files

_NAME = re.compile(r"(?P<task>.+)\.shard-(?P<index>[1-9]\d{0,4})-of-(?P<count>[1-9]\d{0,4})\.safetensors")
_COUNTS = ("tokens", "examples")


@dataclass(frozen=True)
class Shard:
    """One of several disjoint shares of a task's batches.

    Attributes:
        index: Which one, from 1.
        count: Of how many.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2/8``.

        Raises:
            OsrmError: If it is not of this form.
        """
        match = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text.strip(), re.ASCII)
        if not match or int(match[1]) > int(match[2]):
            raise OsrmError(f"shard '{text}', expected i/n with i from 1 to n", "for example --shard 2/8")
        return cls(int(match[1]), int(match[2]))

    def path(self, whole: Path) -> Path:
        """Where this share of a whole features file lies."""
        return whole.with_name(f"{whole.stem}.shard-{self.index}-of-{self.count}.safetensors")


def shard_of_name(path: Path) -> Shard | None:
    """The share that a file's name stands for; ``None`` for a whole features file."""
    match = _NAME.fullmatch(path.name)
    return Shard(int(match["index"]), int(match["count"])) if match else None


def find_feature_shards(whole: Path) -> list[Path]:
    """The shards of a whole features file, in the order of their numbers."""
    named = [(shard_of_name(path), path) for path in whole.parent.glob("*.safetensors")]
    ours = [(each.count, each.index, path) for each, path in named if each and path.name == each.path(whole).name]
    return [path for _, _, path in sorted(ours)]


def sharded_tasks(folder: Path) -> list[str]:
    """The tasks that a folder holds shards of, in the order of their names."""
    return sorted(
        {unsharded_features_path(path).stem for path in folder.glob("[!.]*.safetensors") if shard_of_name(path)}
    )


def unsharded_features_path(path: Path) -> Path:
    """The whole features file that a shard belongs to; a whole one's own path."""
    match = _NAME.fullmatch(path.name)
    return path.with_name(f"{match['task']}.safetensors") if match else path


def _unsharded_header(whole: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """The header of the whole that shards add up to."""
    _check_shards_complete(whole, [share for path in paths if (share := shard_of_name(path))])
    headers = [input_files.read_safetensors_record(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        check_features_header(path, header)
    plain = [{key: value for key, value in header.items() if key not in _COUNTS} for header in headers]
    for path, header in zip(paths, plain, strict=True):
        if header != plain[0]:
            odd = next(key for key in sorted(header.keys() | plain[0].keys()) if header.get(key) != plain[0].get(key))
            raise OsrmError(f"{path} differs from {paths[0]} in its {odd}", "collect all shards with the same options")
    counts = {key: sum(header[key] for header in headers) for key in _COUNTS}
    return {key: value for key, value in plain[0].items() if key != "shards"} | counts


def check_features_header(path: Path, record: Mapping[str, Any]) -> None:
    """Check the header of a features file or a shard.

    Raises:
        OsrmError: If it was not written by ``collect``, or a value is missing or cannot be used.
    """
    from osrm_cli.features.header_schema import (
        find_features_header_error,
    )  # pydantic: only those who read features need it

    if record.get("command") != "collect":
        raise OsrmError(f"{path} is not a features file", "features files are written by 'osrm collect'")
    if wrong := find_features_header_error(record):
        raise OsrmError(f"{path}: its header cannot be used: {wrong}", "collect this task's features again")


def _check_shards_complete(whole: Path, shares: Sequence[Shard]) -> None:
    counts = sorted({share.count for share in shares})
    if not counts:
        raise OsrmError(f"{whole.parent} holds no shards of task '{whole.stem}'", "osrm collect --shard 1/2 makes one")
    if len(counts) > 1:
        raise OsrmError(
            f"{whole.parent} holds shards of {' and of '.join(map(str, counts))} of task '{whole.stem}'",
            "remove those that do not belong",
        )
    missing = sorted(set(range(1, counts[0] + 1)) - {share.index for share in shares})
    if missing:
        raise OsrmError(
            f"{whole.parent} lacks shards {', '.join(map(str, missing))} of {counts[0]} of task '{whole.stem}'",
            f"osrm collect --task {whole.stem} --shard {missing[0]}/{counts[0]}, with the options of the others",
        )


Sums = Mapping[str, Sequence[Accumulator]]  # by layer, in the order of the statistics' names


def finalized_statistics(sums: Sums, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a whole file, one after the other: every statistic by ``<layer>.<statistic>``, float32."""
    for entry, total in _iter_accumulators(sums, names):
        yield entry, total.finalize(torch.float32)


def find_statistic_bounds(sums: Sums, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By ``<layer>.<statistic>``, how far statistics that are not exact may be off."""
    return {entry: total.error_bound() for entry, total in _iter_accumulators(sums, names) if total.error_bound()}


def shard_tensors(sums: Sums, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a shard, one after the other."""
    for entry, total in _iter_accumulators(sums, names):
        yield from ((f"{entry}.{part}", tensor) for part, tensor in total.state().items())


def with_statistic_bounds(record: Mapping[str, Any], bounds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A header, with its ``bounds`` if there are some."""
    return {**record, "bounds": bounds} if bounds else dict(record)


def shard_tensor_names(layer: str, statistic: str) -> list[str]:
    """Names of a layer's tensors in a shard."""
    return [f"{layer}.{statistic}.{part}" for part in find_statistic(statistic).load()(1).layout()]


def longest_statistic_bounds(entries: Iterable[str]) -> dict[str, dict[str, float]]:
    """Bounds of those entries that have some, with as many digits as there can be."""
    sketches = [entry for entry in entries if find_statistic(entry.rpartition(".")[2]).kind == "sketch"]
    return {entry: dict.fromkeys(("error", "energy"), -sys.float_info.max) for entry in sketches}


def _iter_accumulators(sums: Sums, names: Sequence[str]) -> Iterator[tuple[str, Accumulator]]:
    for layer, totals in sums.items():
        for name, total in zip(names, totals, strict=True):
            yield f"{layer}.{name}", total


class MergedShards:
    """Shards opened as if they were the whole file.

    Args:
        whole: Where the whole file would lie.

    Attributes:
        paths: The shards, in the order of their numbers.
        record: The whole file's header, but for bounds.

    Raises:
        OsrmError: If one is missing or differs from the others in more than its counts.
    """

    def __init__(self, whole: Path) -> None:
        self.paths = find_feature_shards(whole)
        self.record = _unsharded_header(whole, self.paths)
        self._files = [input_files.SafetensorsFile(path) for path in self.paths]
        self._widths = {layer["source"]: layer["d_in"] for layer in self.record["layers"].values()}
        self._keys = [set(input_files.open_safetensors(path).keys()) for path in self.paths]
        self._order = input_files.open_safetensors(self.paths[0]).offset_keys()

    def get_tensor(self, entry: str) -> torch.Tensor:
        """One statistic, float32 as in the whole file.

        Raises:
            KeyError: If a shard lacks it.
        """
        return self._merge_states(entry).finalize(torch.float32)

    def error_bound(self, entry: str) -> dict[str, float]:
        """How far the statistic may be off."""
        total = self._merge_states(entry)
        total.finalize()
        return total.error_bound()

    @property
    def names(self) -> list[str]:
        """The whole file's tensors, in the order of the shards'."""
        places = {key.rpartition(".")[0]: place for place, key in enumerate(self._order)}
        names = [f"{layer}.{name}" for layer in self._widths for name in self.record["statistics"]]
        return sorted(names, key=lambda name: places.get(name, len(places)))

    def tensors(self, bounds: dict[str, dict[str, float]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of the whole file, one after the other; ``bounds`` is filled on the way.

        Raises:
            OsrmError: If a shard lacks a tensor.
        """
        for entry in self.names:
            try:
                total = self._merge_states(entry)
            except KeyError as error:
                raise OsrmError(f"a shard beside {self.paths[0]} lacks {error.args[0]}", "collect it again") from None
            yield entry, total.finalize(torch.float32)
            if bound := total.error_bound():
                bounds[entry] = bound

    def _merge_states(self, entry: str) -> Accumulator:
        """The accumulator that counted what all shards have counted.

        Raises:
            KeyError: If a shard lacks it.
        """
        layer, _, name = entry.rpartition(".")
        total = find_statistic(name).load()(self._widths[layer])
        layout = total.layout()
        parts = {part: f"{entry}.{part}" for part in layout}
        for path, file, keys in zip(self.paths, self._files, self._keys, strict=True):
            if not set(parts.values()) <= keys:
                raise KeyError(entry)
            state = {part: file.get_tensor(key) for part, key in parts.items()}
            if not _is_accumulator_state(state, layout):
                raise OsrmError(f"{path}: the sums of {entry} are damaged", "collect this shard again")
            total.merge_state(state)
        return total


def _is_accumulator_state(state: Mapping[str, torch.Tensor], layout: Mapping[str, torch.Tensor]) -> bool:
    """Whether tensors can be an accumulator's state, given its layout."""
    rows = set()
    for part, tensor in state.items():
        expected = layout[part]
        if tensor.dtype != expected.dtype or tensor.ndim != expected.ndim or not torch.isfinite(tensor).all():
            return False
        rows |= {size for size, known in zip(tensor.shape, expected.shape, strict=True) if known == 0}
        if any(known not in (0, size) for size, known in zip(tensor.shape, expected.shape, strict=True)):
            return False
    counts = [int(state[part]) for part in ("tokens", "examples")]
    return len(rows) <= 1 and min(counts) >= 0
