"""One task's statistics, on their way from the model into a file."""

import math
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from osrm_cli.features import shards
from osrm_cli.features.chosen_statistics import StatisticsConfig
from osrm_cli.features.collector import FeatureCollector, describe_feature_layers
from osrm_cli.features.features_file import GRADIENT
from osrm_cli.features.memory import StatisticsSize, format_memory_size, plan_statistics_memory
from osrm_cli.features.statistics.private_mean import DELTA, privacy_epsilon, private_mean
from osrm_cli.models.distributed import process_rank
from osrm_cli.progress import Advance, Progress
from osrm_cli.seeding import generator
from osrm_cli.tasks.task import TaskSplit

_MAX_COUNT = 2**53


class TaskFeatures:
    """Statistics of one task's examples, collected group of layers by group.

    Attributes:
        plan: The groups, and the memory that they take.
        names: The file's tensors, in the order of ``tensors``: the same whatever the groups.
        warnings: What the user should know.
    """

    def __init__(
        self, collector: FeatureCollector, config: StatisticsConfig, data: TaskSplit, max_length: int, limit: int
    ) -> None:
        """Tokenize the examples, and plan.

        Args:
            collector: The base model.
            config: What to collect.
            data: The examples.
            max_length: Tokens per example.
            limit: Bytes that statistics of the layers' inputs may take at a time.

        Raises:
            OsrmError: If one layer alone takes more, or the examples cannot be read.
        """
        self._collector, self._config, self._data = collector, config, data
        self._encodings = collector.tokenize(data, max_length)
        self._pad_to = max_length if config.pooling == "padded" else None
        self._inputs = collector.probe(self._encodings, self._pad_to)
        self._layers = describe_feature_layers(collector.layers, self._inputs)
        self._batches = config.batches(self._encodings)
        self._recorded = self._inputs.distinct if config.accumulated else []
        widths = {name: self._layers[name]["d_in"] for name in self._recorded}
        longest = [max(self._pad_to or 0, *map(len, encoding.values())) for encoding in self._encodings]
        largest = max(len(rows) * max(longest[row] for row in rows) for rows in self._batches)
        self.plan = plan_statistics_memory(
            widths, StatisticsSize(config.accumulated, len(self._encodings), largest), limit
        )
        self.names = self._list_names()
        self.warnings = [*collector.warnings, *self._warn_of_passes()]
        collector.warnings.clear()
        self._tokens = self._examples = 0
        self._bounds: dict[str, dict[str, float]] = {}

    def tensors(self, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
        """Run the model, and give out each group's tensors before the next group is run.

        Under a launcher all processes have to go through to the end; the first one alone is given tensors.
        """
        batches = self._config.share(self._batches) if self._recorded else []
        examples = sum(map(len, batches)) * len(self.plan.groups)
        with progress(f"collect {self._data.task.name}", examples, "examples") as advance:
            for group in self.plan.groups:
                yield from self._collect_pass(group, batches, advance)
        if self._config.has_gradient and process_rank() == 0:
            with progress(f"gradient {self._data.task.name}", len(self._encodings), "examples") as advance:
                found = self._collector.gradients(self._data, self._encodings, self._config.batch_size, advance)
            yield from ((f"{layer}.{GRADIENT}", found[layer]) for layer in self._layers)

    def contents(self) -> dict[str, Any]:
        """What the header says of the tensors, known after the last one."""
        examples = self._examples if self._recorded else len(self._data.examples)
        # Of a private mean each example counts once, whatever its length: the number of tokens is nobody's business.
        counts = {"tokens": examples if self._config.noise else self._tokens, "examples": examples}
        return shards.with_statistic_bounds(self._collection_record | counts, self._bounds)

    def longest_contents(self) -> dict[str, Any]:
        """The same, known before: no shorter."""
        bounds = {} if self._config.shard else shards.longest_statistic_bounds(self.names)
        return shards.with_statistic_bounds(
            self._collection_record | {"tokens": _MAX_COUNT, "examples": _MAX_COUNT}, bounds
        )

    @cached_property
    def _collection_record(self) -> dict[str, Any]:
        facts = {"task": self._data.task.to_dict(), "statistics": self._config.names, "layers": self._layers}
        if share := self._config.shard:
            return {**facts, "shards": {"count": share.count, "batch_size": self._config.batch_size}}
        if not self._config.noise:
            return facts
        sigma, clip = self._config.noise
        spent = {"epsilon": privacy_epsilon(sigma, len(self._recorded)), "delta": DELTA}
        return {**facts, "private": {**spent, "sigma": sigma, "clip": clip, "mechanisms": len(self._recorded)}}

    def count_bytes(self) -> int:
        """Bytes of the file's tensors, about."""
        total = 0
        for row in self._config.statistics:
            for layer in self._layers if row.name == GRADIENT else self._recorded:
                shape = row.shape(self._layers[layer]["d_in"], self._layers[layer]["d_out"])
                total += math.prod(len(self._encodings) if size is None else size for size in shape)
        return total * (8 if self._config.shard else 4)

    def _list_names(self) -> list[str]:
        config = self._config
        if config.noise:
            return [f"{layer}.mean" for layer in self._recorded]
        pairs = [(layer, row.name) for layer in self._recorded for row in config.accumulated]
        if config.shard:
            return [name for layer, statistic in pairs for name in shards.shard_tensor_names(layer, statistic)]
        gradients = [f"{layer}.{GRADIENT}" for layer in self._layers] if config.has_gradient else []
        return [*(f"{layer}.{statistic}" for layer, statistic in pairs), *gradients]

    def _collect_pass(
        self, group: Sequence[str], batches: Sequence[list[int]], advance: Advance
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """One pass; its sums leave memory at the end."""
        config, inputs = self._config, self._inputs.only(group)
        found = self._collector.accumulate(
            self._encodings, config.accumulated, batches, inputs, self._pad_to, advance, config.tokens
        )
        if process_rank():
            return
        self._tokens, self._examples = max(self._tokens, found.tokens), max(self._examples, found.examples)
        names = [row.name for row in config.accumulated]
        if config.shard:
            yield from shards.shard_tensors(found.sums, names)
        elif config.noise:
            for layer, (samples,) in found.sums.items():
                draw = generator(secrets.randbits(128), layer)  # noise that a seed repeats would hide nothing
                yield f"{layer}.mean", private_mean(samples.finalize(), config.noise[1], config.noise[0], draw).float()
        else:
            yield from shards.finalized_statistics(found.sums, names)
            self._bounds |= shards.find_statistic_bounds(found.sums, names)
        found.sums.clear()  # frames of the pass that ended early may still refer to it

    def _warn_of_passes(self) -> list[str]:
        plan = self.plan
        if len(plan.groups) < 2:
            return []
        needed = format_memory_size(plan.whole, up=True)
        return [f"statistics are collected in {len(plan.groups)} passes; --memory {needed} would do with one"]
