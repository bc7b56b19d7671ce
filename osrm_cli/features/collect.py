"""Collect activation statistics: examples of a task -> ``features/<task>.safetensors``."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.errors import OsrmError
from osrm_cli.features.chosen_statistics import StatisticsConfig
from osrm_cli.features.collector import FeatureCollector
from osrm_cli.features.features_file import describe_features, write_features
from osrm_cli.features.memory import DEFAULT_MEMORY, parse_statistics_memory
from osrm_cli.features.task_features import TaskFeatures
from osrm_cli.models.backbone import check_max_length
from osrm_cli.models.base_model import find_base_model, identify_base_model
from osrm_cli.models.devices import pick_device, pick_dtype
from osrm_cli.models.distributed import local_device, process_group, process_rank
from osrm_cli.models.layer_inputs import ALL_TOKENS
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.tasks.description import describe_task_split
from osrm_cli.tasks.loading import draw_examples, list_tasks, load_split


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
        memory: Under ``dry_run``, by task: ``memory`` and ``passes`` of the statistics, and ``memory_of_one_pass``, in
            bytes.
        warnings: What the user should know about how the data was read.
    """

    paths: Mapping[str, Path]
    examples: Mapping[str, int]
    layers: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
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
    memory: str = DEFAULT_MEMORY,
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
        data: ``hub``, ``mini`` or a folder of tasks; ``FOLDER?split-dev=0.1`` where a tenth of train is to be dev.
        model: Base model: a folder, a hub id, ``minilm`` or ``smollm2``.
        revision: Its revision on the hub.
        target_modules: Layers to adapt, as PEFT names them; PEFT's choice by default.
        statistics: Names of the statistics; mean and second moment by default.
        samples: Training examples per task.
        max_length: Tokens per example; by default the task's, else 128.
        pooling: ``masked``, or ``padded`` to count padding as text.
        tokens: Which tokens of a text task count: ``all``, or ``prompt`` or ``completion`` on a causal model.
        skip_long: Leave out rows whose completion exceeds ``max_length``, instead of an error.
        batch_size: Maximum examples per batch.
        seed: Of the draw of examples.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        offload: Leave the base model's weights on disk and read them layer by layer.
        memory: Most that statistics of the layers' inputs may take at a time, such as ``8GiB``; layers are collected in
            as many passes as that needs.
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
    limit = parse_statistics_memory(memory)
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
    if tokens != ALL_TOKENS and collector.model.config.is_encoder_decoder:
        raise OsrmError(
            f"--tokens {tokens}: {base_dir} is an encoder-decoder, whose layers read the prompt or the completion, "
            f"expected --tokens {ALL_TOKENS}",
            "leave it out: the encoder's features are of the prompt, the decoder's of the completion",
        )
    result = CollectedFeatures(
        paths,
        {name: len(split.examples) for name, split in drawn.items()},
        len(collector.layers),
        data={name: describe_task_split(split) for name, split in whole.items()} if dry_run else {},
        warnings=[warning for split in whole.values() for warning in split.warnings],
    )
    if dry_run:
        for name, split in drawn.items():
            task = TaskFeatures(collector, config, split, lengths[name], limit)
            result.memory[name] = task.plan.record()
            result.warnings.extend(task.warnings)
        return result
    with process_group():
        for name, path in paths.items():
            task = TaskFeatures(collector, config, drawn[name], lengths[name], limit)
            if process_rank():  # under a launcher, one process writes
                deque(task.tensors(progress), maxlen=0)
                continue
            atomic.check_disk_space(path, task.count_bytes())
            settings = {"samples": samples, "seed": seed, "pooling": str(pooling), "max_length": lengths[name]}
            settings |= {"tokens": str(tokens)} if is_text else {}
            origin = {"source": str(data), "split": drawn[name].split, "sha256": config.digest(drawn[name])}
            record = partial(
                provenance.make_artifact_record,
                "collect",
                settings | config.settings(),
                base=base,
                data=origin,
                **collector.record(),
            )
            result.warnings.extend(task.warnings)
            with atomic.write_file(path, overwrite) as stage:
                tensors, finish = task.tensors(progress), lambda made=record, task=task: made(**task.contents())
                written = write_features(stage, task.names, tensors, finish, record(**task.longest_contents()))
            result.files[name] = describe_features(path, written)
    return result
