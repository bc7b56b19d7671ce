"""Files of a task-aware method: one update for all tasks, and a mask and a factor for each. It is not one model.

    merged/
      unified.safetensors                 ``<layer>``: the unified update, (d_out, d_in)
      tasks/<task>/masks.safetensors      ``<layer>``: the task's mask as bits, row by row, the first one the highest
      tasks/<task>/osrm.json              ``rescalers``: a factor for each layer
      tasks/<task>/head.safetensors       the task's head, if it has one

A task's update is ``rescaler * mask * unified``: exact, where factors of a low rank could not be.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.merging.merged_layer import MergedLayer
from osrm_cli.merging.methods.layer_updates import MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.record import TASKS_FOLDER
from osrm_cli.storage import input_files, records
from osrm_cli.storage.safetensors_writer import write_safetensors

UNIFIED_NAME = "unified.safetensors"
MASKS_NAME = "masks.safetensors"


def write_task_masks(stage: Path, plan: MergePlan, layers: Iterable[MergedLayer]) -> dict[str, dict[str, float]]:
    """Write the update and the masks, layer by layer.

    Returns:
        Rescalers by task and layer, for the tasks' records.
    """
    rescalers: dict[str, dict[str, float]] = {adapter.name: {} for adapter in plan.adapters}
    with ExitStack() as stack:
        unified = stack.enter_context(write_safetensors(stage / UNIFIED_NAME, plan.layers))
        masks = {}
        for task in rescalers:
            folder = stage / TASKS_FOLDER / task
            folder.mkdir(parents=True, exist_ok=True)
            masks[task] = stack.enter_context(write_safetensors(folder / MASKS_NAME, plan.layers))
        for layer in layers:
            if not isinstance(layer.result, MaskedDelta):
                raise TypeError(f"{layer.name}: {type(layer.result).__name__} has no masks")
            unified.add(layer.name, layer.result.unified.to(plan.dtype))
            for task, mask, factor in zip(rescalers, layer.result.masks, layer.result.rescalers, strict=True):
                masks[task].add(layer.name, torch.from_numpy(np.packbits(mask.cpu().numpy())))
                rescalers[task][layer.name] = factor
    return rescalers


def list_task_layers(folder: Path, task: str) -> list[str]:
    """The layers that one task changes.

    Raises:
        OsrmError: If update, masks and factors are not of the same layers, or a file is missing or damaged.
    """
    own = folder / TASKS_FOLDER / task
    layers = {
        folder / UNIFIED_NAME: set(input_files.list_safetensors_headers([folder / UNIFIED_NAME])),
        own / MASKS_NAME: set(input_files.list_safetensors_headers([own / MASKS_NAME])),
        own / records.RECORD_NAME: set(records.read_record(own).get("rescalers") or {}),
    }
    every = set().union(*layers.values())
    for path, found in layers.items():
        if missing := sorted(every - found):
            raise OsrmError(f"{path} holds nothing for layer {missing[0]!r}, others of the merge do", "merge again")
    return sorted(every)


def read_task_delta(folder: Path, task: str, layer: str) -> torch.Tensor:
    """One task's update of one layer, ``(d_out, d_in)``.

    Raises:
        OsrmError: If the folder does not hold the task, or a file is missing or damaged.
    """
    own = folder / TASKS_FOLDER / task
    rescalers = records.read_record(own).get("rescalers") or {}
    if layer not in rescalers:
        raise OsrmError(
            f"{own} holds no mask for {layer}", f"tasks: {', '.join(sorted(records.read_record(folder)['tasks']))}"
        )
    with input_files.open_safetensors(folder / UNIFIED_NAME) as file:
        unified: torch.Tensor = file.get_tensor(layer)
    with input_files.open_safetensors(own / MASKS_NAME) as file:
        packed: torch.Tensor = file.get_tensor(layer)
    if packed.dtype != torch.uint8 or packed.numel() != -(-unified.numel() // 8) or unified.ndim != 2:
        raise OsrmError(f"{own / MASKS_NAME}: the mask of {layer} does not fit its update", "merge again")
    if not input_files.all_finite(unified):
        raise OsrmError(f"{folder / UNIFIED_NAME}: NaN or infinity in {layer}", "merge again")
    bits = np.unpackbits(packed.numpy(), count=unified.numel())
    mask = torch.from_numpy(bits).reshape(unified.shape)
    update: torch.Tensor = unified * mask * rescalers[layer]
    return update
