"""Which statistics ``osrm collect`` keeps, from which share of the batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import GRADIENT
from osrm_cli.features.shards import Shard
from osrm_cli.features.statistics.private_mean import check_privacy
from osrm_cli.features.statistics.table import Statistic, find_statistic
from osrm_cli.models.distributed import process_count, process_rank
from osrm_cli.models.layer_inputs import ALL_TOKENS
from osrm_cli.models.token_batches import Encoding, group_by_length
from osrm_cli.tasks.task import TaskSplit


@dataclass(frozen=True)
class StatisticsConfig:
    """Which statistics are collected, from which share of the batches.

    Attributes:
        statistics: As chosen.
        shard: The share of the batches to read, if there are several.
        noise: ``(sigma, clip)`` of a private mean.
        batch_size: Maximum examples per batch.
        pooling: ``masked`` or ``padded``.
        tokens: Which tokens of a text task count.
    """

    statistics: Sequence[Statistic]
    shard: Shard | None
    noise: tuple[float, float] | None
    batch_size: int
    pooling: str
    tokens: str = ALL_TOKENS

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        shard: str | None,
        private: float | None,
        clip: float | None,
        batch_size: int,
        pooling: str,
        tokens: str,
    ) -> "StatisticsConfig":
        """Check the options.

        Raises:
            OsrmError: If they exclude one another, or the accountant of a private mean is missing.
        """
        noise = None if private is None or clip is None else (private, clip)
        if noise is None and (private, clip) != (None, None):
            raise OsrmError("--private needs --clip, and --clip needs --private", "give both or none of them")
        default = ["mean"] if noise else ["mean", "second-moment"]
        statistics = list({row.name: row for row in map(find_statistic, names or default)}.values())
        share = Shard.parse(shard) if shard else None
        if noise and [row.name for row in statistics] != ["mean"]:
            raise OsrmError(
                "--private keeps a mean alone: beside raw statistics it would protect nobody", "no --statistic"
            )
        if noise and share:
            raise OsrmError("--private and --shard exclude one another: a shard holds raw sums", "give one of them")
        if share and any(not row.accumulator for row in statistics):
            raise OsrmError(
                "a gradient has no shards: its head is fitted on all examples",
                "collect it without --shard, to another --out",
            )
        if noise:
            check_privacy(*noise)
        return cls(statistics, share, noise, batch_size, pooling, tokens)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient is among the statistics."""
        return GRADIENT in self.names

    @property
    def names(self) -> list[str]:
        """Names of the statistics."""
        return [row.name for row in self.statistics]

    @property
    def accumulated(self) -> list[Statistic]:
        """Statistics of the layers' inputs."""
        return [find_statistic("samples")] if self.noise else [row for row in self.statistics if row.accumulator]

    def path(self, whole: Path) -> Path:
        """Where the result is written."""
        return self.shard.path(whole) if self.shard else whole

    def batches(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        """All examples, batch by batch."""
        return group_by_length([len(encoding["input_ids"]) for encoding in encodings], self.batch_size)

    def share(self, batches: Sequence[list[int]]) -> Sequence[list[int]]:
        """The batches that this process runs through the model.

        Shares are made of batches, not of examples: each batch is computed as in the whole, so that shares differ from
        it in nothing but the order of a sum in float64. Several processes share out a share again.
        """
        share = self.shard or Shard(1, 1)
        return batches[share.index - 1 :: share.count][process_rank() :: process_count()]

    def digest(self, data: TaskSplit) -> str | None:
        """Digest of the examples; none beside a private mean, as it would confirm a correct guess of them."""
        return None if self.noise else data.sha256

    def settings(self) -> dict[str, Any]:
        """Settings that only some files have."""
        return dict(zip(("private", "clip"), self.noise, strict=True)) if self.noise else {}
