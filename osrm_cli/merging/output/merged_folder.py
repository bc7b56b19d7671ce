"""The merged folder: one update for all tasks, and each task's head beside it.

``--as adapter``, the default::

    merged/
      adapter_config.json, adapter_model.safetensors    the merged update alone
      tasks/<task>/                                     a complete PEFT folder: the merged update and the task's head
      merge.yaml, osrm.json, README.md                  how it was made

``--as model`` holds the base model's files with the update added, and ``tasks/<task>/head.safetensors``. A task-aware
method writes ``unified.safetensors`` instead, see ``task_masks.py``.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.layers import ROWS
from osrm_cli.adapters.trained_rows import BASE_COPY
from osrm_cli.adapters.writer import AdapterWriter, write_adapter_stream
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging import record
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.merged_layer import MergedLayer
from osrm_cli.merging.output.merged_model import MergeTarget
from osrm_cli.merging.output.task_masks import write_task_masks
from osrm_cli.merging.output.unfinished_model import UnfinishedMerge
from osrm_cli.merging.plan import Heads, MergedModules, MergePlan
from osrm_cli.merging.record import HEAD_NAME, TASKS_FOLDER
from osrm_cli.storage import safetensors_writer
from osrm_cli.storage.records import BaseModelId


@dataclass(frozen=True)
class FolderContents:
    """What a merged folder holds.

    Attributes:
        form: ``adapter``, ``model`` or ``task-aware``.
        ranks: Rank of each layer's factors; empty but for an adapter.
        kept: Share of each layer's energy that is left after recompression.
    """

    form: str
    ranks: Mapping[str, int]
    kept: Mapping[str, float]


def write_merged_folder(
    stage: Path,
    plan: MergePlan,
    modules: MergedModules,
    layers: Iterator[MergedLayer],
    layer_data: LayerData,
    base: BaseModelId | None,
    target: MergeTarget | None = None,
    unfinished: UnfinishedMerge | None = None,
) -> FolderContents:
    """Write the folder, but for ``merge.yaml``, while its layers are merged.

    Args:
        stage: An existing, empty folder that is being staged.
        plan: What is merged.
        modules: What the adapters hold beside their updates.
        layers: Results: in the order of ``plan.layers``, for a model in that of ``target.order``.
        layer_data: What the method reads beside the adapters.
        base: The base model, where it is known.
        target: The base model's weights, to write a model instead of an adapter.
        unfinished: Keeps finished files of a model, and holds those of an earlier run.
    """
    rescalers: dict[str, dict[str, float]] = {}
    with ThreadPoolExecutor(1) as beside:  # hashing takes as long as the reading and writing, but another core
        data_record = beside.submit(lambda: layer_data.record)
        inputs = beside.map(record.describe_merge_input, plan.adapters, plan.recipe.adapters)
        if plan.method.is_task_aware:
            rescalers = write_task_masks(stage, plan, layers)
            contents = FolderContents("task-aware", {}, dict.fromkeys(plan.layers, 1.0))
        elif target:
            contents = FolderContents("model", {}, target.write(stage, layers, unfinished))
        else:
            contents = _write_merged_adapter(stage, plan, layers, modules)
        if contents.form != "adapter":
            _write_merged_heads(stage, modules.heads)
        record.write_merge_record(
            stage,
            plan,
            data_record.result(),
            base,
            contents.form,
            contents.kept,
            rescalers,
            list(inputs),
            modules.heads,
        )
    return contents


def _write_merged_adapter(
    stage: Path, plan: MergePlan, layers: Iterator[MergedLayer], modules: MergedModules
) -> FolderContents:
    """PEFT folders, all written layer by layer at once."""
    heads, config = modules.heads, _merged_adapter_config(plan, modules)
    rows = {module + ROWS: own.values for module, own in modules.rows.items()}
    beside = {**{_peft_name_of_merged_value(name, modules): tensor for name, tensor in modules.values.items()}, **rows}
    kept = {}
    with ExitStack() as stack:

        def open_writer(folder: Path, own: AdapterConfig, head: Mapping[str, torch.Tensor]) -> AdapterWriter:
            folder.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(write_adapter_stream(folder, plan.layers, own, head, plan.dtype, plan.shapes))

        writers = [open_writer(stage, config, beside)]
        for adapter in plan.adapters:
            if head := heads[adapter.name]:
                own = replace(
                    config, task_type=adapter.config.task_type, modules_to_save=adapter.config.modules_to_save
                )
                writers.append(open_writer(stage / TASKS_FOLDER / adapter.name, own, {**head, **beside}))
        for layer in layers:
            if not isinstance(layer.result, LowRank):
                raise TypeError(f"{layer.name}: {type(layer.result).__name__} cannot be written as an adapter")
            for writer in writers:
                writer.add(layer.name, layer.result)
            kept[layer.name] = layer.kept
    return FolderContents("adapter", writers[0].ranks, kept)


def _peft_name_of_merged_value(name: str, modules: MergedModules) -> str:
    """PEFT's name of a value that adapters hold as a whole; a copy below an adapted embedding has one of its own."""
    if name in modules.trained:
        return name
    module = name.removesuffix(".weight")
    return module + (BASE_COPY if module in modules.rows else ".base_layer.weight")


def _write_merged_heads(stage: Path, heads: Heads) -> None:
    """Each task's head as ``tasks/<task>/head.safetensors``, its tensors named as in the base model."""
    for task, head in heads.items():
        if head:
            folder = stage / TASKS_FOLDER / task
            folder.mkdir(parents=True, exist_ok=True)
            safetensors_writer.save_tensors(folder / HEAD_NAME, head, {"task": task})


def _merged_adapter_config(plan: MergePlan, modules: MergedModules) -> AdapterConfig:
    """PEFT's settings of the update alone: without a head, its classes for classification could not load it."""
    configs = [adapter.config for adapter in plan.adapters]
    types = {config.task_type for config in configs}
    first = configs[0].target_modules
    same = all(each.config.target_modules == first and tuple(each.layers) == plan.layers for each in plan.adapters)
    return AdapterConfig(
        base_model=next((config.base_model for config in configs if config.base_model), None),
        revision=next((config.revision for config in configs if config.revision), None),
        task_type=types.pop() if len(types) == 1 and not any(modules.heads.values()) else None,
        modules_to_save=tuple(
            module
            for module in configs[0].modules_to_save
            if any(module in name.split(".") or name.startswith(f"{module}.") for name in modules.trained)
        ),
        fan_in_fan_out=any(config.fan_in_fan_out for config in configs),
        target_modules=first if same else (),
        token_indices=configs[0].token_indices,
        target_parameters=tuple(sorted({name for config in configs for name in config.target_parameters})),
    )
