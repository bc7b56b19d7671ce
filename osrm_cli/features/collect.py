"""Collect activation statistics: examples of a task -> ``features/<task>.safetensors``."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.collector import FeatureCollector, InputStatistics
from osrm_cli.features.features_file import GRADIENT, describe_features, write_features
from osrm_cli.features.shards import Shard
from osrm_cli.features.statistics.private_mean import DELTA, check_privacy, privacy_epsilon, private_mean
from osrm_cli.features.statistics.table import Statistic, find_statistic
from osrm_cli.models.backbone import check_max_length
from osrm_cli.models.base_model import find_base_model, identify_base_model
from osrm_cli.models.batching import Encoding, group_by_length
from osrm_cli.models.devices import pick_device, pick_dtype
from osrm_cli.models.distributed import local_device, process_count, process_group, process_rank
from osrm_cli.models.layer_inputs import ALL_TOKENS
from osrm_cli.progress import Progress, no_progress
from osrm_cli.seeding import generator
from osrm_cli.storage import atomic, provenance
from osrm_cli.tasks.description import describe_split
from osrm_cli.tasks.loading import draw_examples, list_tasks, load_split
from osrm_cli.tasks.task import TaskSplit


@dataclass(frozen=True)
class CollectedFeatures:
    """What ``collect_features`` did.

    Attributes:
        paths: File of each task that was written, or would be.
        examples: Number of examples drawn, by task.
        layers: Number of target layers.
        files: By task, what was written: ``path``, ``examples``, ``tokens``, ``layers`` and perhaps ``private``; empty
            under ``dry_run``, and in all processes but the first.
        data: Under ``dry_run``, what was understood of each task's data.
        warnings: What the user should know about how the data was read.
    """

    paths: Mapping[str, Path]
    examples: Mapping[str, int]
    layers: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def collect_features(
    tasks: Sequence[str] = (),
    data: Path | str = DEFAULT_DATA,
    *,
    model: str = "minilm",
    revision: str | None = None,
    target_modules: Sequence[str] | None = None,
    statistics: Sequence[str] = (),
    samples: int = 100,
    max_length: int | None = None,
    pooling: str = "masked",
    tokens: str = "all",
    skip_long: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    offload: bool = False,
    shard: str | None = None,
    private: float | None = None,
    clip: float | None = None,
    out: Path | str = "features",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> CollectedFeatures:
    """Collect statistics of each target layer's inputs on examples of each task.

    A task's file is written when the task is done: a failure leaves those that were done before.

    Args:
        tasks: Names of the tasks; all of the data by default.
        data: ``hub``, ``mini`` or a folder of tasks.
        model: Base model: a folder, a hub id, ``minilm`` or ``smollm2``.
        revision: Its revision on the hub.
        target_modules: Layers to adapt, as PEFT names them; PEFT's choice by default.
        statistics: Names of the statistics; mean and second moment by default.
        samples: Training examples per task.
        max_length: Tokens per example; by default the task's, else 128.
        pooling: ``masked``, or ``padded`` to count padding as text.
        tokens: Which tokens of a text task count: ``all``, ``prompt`` or ``completion``.
        skip_long: Leave out rows whose completion exceeds ``max_length``, instead of an error.
        batch_size: Maximum examples per batch.
        seed: Of the draw of examples.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        offload: Leave the base model's weights on disk and read them layer by layer.
        shard: ``i/n`` to read the i-th of n shares of the batches.
        private: Noise multiplier of a differentially private mean, the only statistic then.
        clip: Maximum norm of an example's mean, for ``private``.
        out: Folder to write to.
        overwrite: Replace files that exist.
        dry_run: Check everything and write nothing.
        progress: Draws bars.

    Raises:
        OsrmError: If data or base model are missing or damaged, or options exclude one another.

    Example:
        >>> from osrm_cli import collect_features
        >>> collect_features(["mini-inference", "mini-mood"], "mini").paths["mini-mood"]
        PosixPath('features/mini-mood.safetensors')
    """
    config = StatisticsConfig.of(statistics, shard, private, clip, batch_size, pooling, tokens)
    names = list(dict.fromkeys(tasks or list_tasks(data)))
    paths = {name: config.path(Path(out) / f"{name}.safetensors") for name in names}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    whole = {name: load_split(name, data, "train") for name in names}
    drawn = {name: draw_examples(split, samples, seed) for name, split in whole.items()}
    lengths = {name: resolve_max_length(max_length, split.task) for name, split in drawn.items()}

    base_dir, base = find_base_model(model, revision), identify_base_model(model, revision)
    check_max_length(base_dir, max(lengths.values()))
    place = local_device(pick_device(device))
    kinds = {split.task.is_text for split in drawn.values()}
    if len(kinds) > 1:
        raise OsrmError(
            f"{data} holds tasks with labels and tasks that are answered with text, which need different models",
            "collect them one after the other, with --task",
        )
    (is_text,) = kinds
    if tokens != ALL_TOKENS and not is_text:
        raise OsrmError(f"--tokens {tokens} is for tasks that are answered with text", "leave it out")
    if offload and config.has_gradient:
        raise OsrmError("a gradient needs the whole model in memory", "collect it without --offload, to another --out")
    precision = pick_dtype(dtype, place)
    collector = FeatureCollector(base_dir, place, precision, target_modules, seed, is_text, skip_long, offload)
    result = CollectedFeatures(
        paths,
        {name: len(split.examples) for name, split in drawn.items()},
        len(collector.layers),
        data={name: describe_split(split) for name, split in whole.items()} if dry_run else {},
        warnings=[warning for split in whole.values() for warning in split.warnings],
    )
    if dry_run:
        return result
    with process_group():
        for name, path in paths.items():
            collected = _read_task(collector, config, drawn[name], lengths[name], progress)
            if process_rank() == 0:  # under a launcher, one process writes
                tensors, contents = config.contents(collected)
                settings = {"samples": samples, "seed": seed, "pooling": str(pooling), "max_length": lengths[name]}
                settings |= {"tokens": str(tokens)} if is_text else {}
                origin = {"source": str(data), "split": drawn[name].split, "sha256": config.digest(drawn[name])}
                record = provenance.make_record(
                    "collect", settings | config.settings(), base=base, data=origin, **collector.record(), **contents
                )
                with atomic.write_file(path, overwrite) as stage:
                    write_features(stage, tensors, record)
                result.warnings.extend(collector.warnings)
                collector.warnings.clear()
                result.files[name] = describe_features(path, record)
    return result


def _read_task(
    collector: FeatureCollector, config: "StatisticsConfig", data: TaskSplit, max_length: int, progress: Progress
) -> "CollectedTask":
    """Run one task's examples through the model."""
    encodings = collector.tokenize(data, max_length)
    batches = config.batches(encodings)
    with progress(f"collect {data.task.name}", sum(map(len, batches)), "examples") as advance:
        pad_to = max_length if config.pooling == "padded" else None
        inputs = collector.accumulate(encodings, config.accumulated, batches, pad_to, advance, config.tokens)
    collected = CollectedTask(data, inputs)
    if config.has_gradient and process_rank() == 0:
        with progress(f"gradient {data.task.name}", len(encodings), "examples") as advance:
            collected.gradients = collector.gradients(data, encodings, config.batch_size, advance)
    return collected


@dataclass
class CollectedTask:
    """What was read of one task.

    Attributes:
        data: Its examples.
        inputs: Statistics of the layers' inputs, under several processes whole in the first one alone.
        gradients: Of the task's loss, by layer.
    """

    data: TaskSplit
    inputs: InputStatistics
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


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
        """Which examples this process runs through the model, batch by batch.

        Shares are made of batches, not of examples: each batch is computed as in the whole, so that shares differ from
        it in nothing but the order of a sum in float64. Several processes share out a share again.
        """
        plan = group_by_length([len(encoding["input_ids"]) for encoding in encodings], self.batch_size)
        share = self.shard or Shard(1, 1)
        return plan[share.index - 1 :: share.count][process_rank() :: process_count()] if self.accumulated else []

    def digest(self, data: TaskSplit) -> str | None:
        """Digest of the examples; none beside a private mean, as it would confirm a correct guess of them."""
        return None if self.noise else data.sha256

    def settings(self) -> dict[str, Any]:
        """Settings that only some files have."""
        return dict(zip(("private", "clip"), self.noise, strict=True)) if self.noise else {}

    def contents(self, collected: CollectedTask) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """A file's tensors, and what its header says of them."""
        inputs, names = collected.inputs, [row.name for row in self.accumulated]
        examples = inputs.examples if names else len(collected.data.examples)
        record: dict[str, Any] = {
            "task": collected.data.task.to_dict(),
            "statistics": self.names,
            "layers": inputs.layers,
            "tokens": inputs.tokens,
            "examples": examples,
        }
        if self.shard:
            parts = {"count": self.shard.count, "batch_size": self.batch_size}
            return shards.shard_tensors(inputs.sums, names), {**record, "shards": parts}
        if self.noise:
            # Each example counts once, whatever its length: the number of tokens is nobody's business either.
            budget = _privacy_budget(*self.noise, len(inputs.sums))
            return _private_means(inputs, *self.noise), {**record, "tokens": examples, "private": budget}
        tensors = shards.finalized_tensors(inputs.sums, names)
        tensors |= {f"{layer}.{GRADIENT}": gradient for layer, gradient in collected.gradients.items()}
        return tensors, record | shards.sketch_bounds(inputs.sums, names)


def _private_means(inputs: InputStatistics, sigma: float, clip: float) -> dict[str, torch.Tensor]:
    means = {}
    for layer, (samples,) in inputs.sums.items():
        noise = generator(secrets.randbits(128), layer)  # noise that a seed repeats would hide nothing
        means[f"{layer}.mean"] = private_mean(samples.finalize(), clip, sigma, noise).float()
    return means


def _privacy_budget(sigma: float, clip: float, mechanisms: int) -> dict[str, float]:
    spent = {"epsilon": privacy_epsilon(sigma, mechanisms), "delta": DELTA}
    return {**spent, "sigma": sigma, "clip": clip, "mechanisms": mechanisms}
