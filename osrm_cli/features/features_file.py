"""Features files: ``features/<task>.safetensors``, one task's activation statistics.

Tensors are named ``<layer>.<statistic>``. Layers that read the same tensor (query, key and value, say) share one
entry: the header's ``layers`` maps each target layer to the layer that holds its statistics.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.statistics.table import find_statistic
from osrm_cli.storage import input_files, safetensors_writer
from osrm_cli.storage.records import BaseModelId

GRADIENT = "gradient"


@dataclass(frozen=True)
class FeatureLayer:
    """A target layer as its features file describes it.

    Attributes:
        source: The layer under whose name the shared statistics are stored.
        d_in: Width of the inputs.
        d_out: Width of the outputs.
    """

    source: str
    d_in: int
    d_out: int


@dataclass(frozen=True)
class FeaturesFile:
    """One task's features file: its header is read at once, each tensor when it is needed.

    Attributes:
        path: The file.
        task: The task's name.
        base: The base model that the features were collected from.
        layers: Target layers, in the order of their names.
        statistics: Names of the statistics, such as ``mean`` and ``second-moment``.
        tokens: Number of token positions that the statistics average over.
        examples: Number of examples read.
        record: The whole header.
        files: Where the tensors lie: the file itself, or the shards that add up to it; ``path`` is the first.
    """

    path: Path
    task: str
    base: BaseModelId
    layers: Mapping[str, FeatureLayer]
    statistics: Sequence[str]
    tokens: int
    examples: int
    record: Mapping[str, Any]
    files: Sequence[Path]

    @classmethod
    def open(cls, path: Path) -> "FeaturesFile":
        """Read a features file's header.

        Args:
            path: The file, or one of its shards. Where there is no whole file, all shards together stand for it.

        Raises:
            OsrmError: If the file is missing, empty, damaged, or was not written by ``collect``; if shards are missing.
        """
        path = shards.unsharded_features_path(path)
        if not path.exists() and shards.find_feature_shards(path):
            parts = shards.MergedShards(path)
            record, files = parts.record, parts.paths
        else:
            record, files = input_files.read_safetensors_record(path), [path]
            shards.check_features_header(path, record)
        return cls(
            path=files[0],
            task=record["task"]["name"],
            base=BaseModelId(**record["base"]),
            layers={name: FeatureLayer(**layer) for name, layer in record["layers"].items()},
            statistics=record["statistics"],
            tokens=record["tokens"],
            examples=record["examples"],
            record=record,
            files=files,
        )

    def input_records(self) -> list[dict[str, Any]]:
        """Its files with their digests, as records of what was made from them name them."""
        return [{"path": path.as_posix(), "sha256": input_files.sha256(path)} for path in self.files]

    def reader(self) -> "FeaturesReader":
        """Its tensors, of which memory holds one at a time."""
        shared = shards.shard_of_name(self.path)
        return FeaturesReader(
            self,
            shards.MergedShards(shards.unsharded_features_path(self.path))
            if shared
            else input_files.SafetensorsFile(self.path),
        )


@dataclass(frozen=True)
class FeaturesReader:
    """An open features file."""

    features: FeaturesFile
    file: shards.MergedShards | input_files.SafetensorsFile

    def read(self, layer: str, statistic: str) -> torch.Tensor:
        """One statistic of one target layer, float64.

        Raises:
            OsrmError: If it is not in the file, or holds NaN or infinity.
        """
        path = self.features.path
        if statistic not in self.features.statistics:
            options = [f"--statistic {name}" for name in (*self.features.statistics, statistic)]
            raise OsrmError(
                f"{path} has no statistic '{statistic}', it holds: {', '.join(self.features.statistics)}",
                " ".join(["osrm collect --overwrite --task", self.features.task, *options]),
            )
        entry = self._tensor_name(layer, statistic)
        try:
            tensor: torch.Tensor = self.file.get_tensor(entry)
        except (SafetensorError, KeyError):
            raise OsrmError(f"{path} lacks {entry}", "collect this task's features again") from None
        known = self.features.layers[layer]
        expected = find_statistic(statistic).shape(known.d_in, known.d_out)
        sizes = zip(expected, tensor.shape, strict=False)
        if tensor.ndim != len(expected) or any(known not in (size, None) for known, size in sizes):
            shape = ", ".join("any" if size is None else str(size) for size in expected)
            raise OsrmError(
                f"{path}: {entry} has shape {tuple(tensor.shape)}, expected ({shape})",
                "collect this task's features again",
            )
        if not tensor.is_floating_point():
            raise OsrmError(f"{path}: {entry} holds no floating-point numbers", "collect this task's features again")
        if not torch.isfinite(tensor.float()).all():  # files hold float32; a larger number is damage as well
            raise OsrmError(f"{path}: NaN or infinity in {entry}", "collect this task's features again")
        return tensor.to(torch.float64)

    def max_unseen_share(self, layer: str, statistic: str) -> float:
        """Largest share of a layer's energy that one direction may hold unseen; 0 unless it is sketched."""
        if not statistic.startswith("sketch"):
            return 0.0
        entry = self._tensor_name(layer, statistic)
        if isinstance(self.file, shards.MergedShards):
            bound = self.file.error_bound(entry)
        else:
            bound = self.features.record.get("bounds", {}).get(entry, {})
        return bound["error"] / bound["energy"] if bound.get("energy") else 0.0

    def _tensor_name(self, layer: str, statistic: str) -> str:
        """Name of a tensor: layers with one input share what is known of it, a gradient is each layer's own."""
        return f"{layer if statistic == GRADIENT else self.features.layers[layer].source}.{statistic}"


def write_features(
    path: Path,
    names: Sequence[str],
    tensors: Iterable[tuple[str, torch.Tensor]],
    finish: Callable[[], Mapping[str, Any]],
    longest: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Write a features file, or a shard, while its statistics are collected; call it on a staging path of ``atomic``.

    Args:
        path: The staging path.
        names: Every tensor.
        tensors: The same, one after the other.
        finish: The header, asked for after the last tensor.
        longest: A header that is no shorter.

    Returns:
        The header.

    Raises:
        OsrmError: If a statistic is not finite.
    """
    with safetensors_writer.write_recorded_safetensors(path, names, longest) as stream:
        for name, tensor in tensors:
            if tensor.is_floating_point() and not input_files.all_finite(tensor):
                raise OsrmError(
                    f"NaN or infinity in {name}: a weight of the base model is damaged, or its precision too narrow",
                    "osrm verify names files that have changed; or try --dtype float32",
                )
            stream.add(name, tensor)
            del tensor  # before the next one is made
        stream.record = finish()
    return stream.record


def describe_features(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """A features file in numbers: ``path``, ``examples``, ``tokens``, ``layers``, and ``private`` where it is."""
    counts = {"examples": record["examples"], "tokens": record["tokens"], "layers": len(record["layers"])}
    private = {"private": record["private"]} if "private" in record else {}
    return {"path": str(path), **counts, **private}
