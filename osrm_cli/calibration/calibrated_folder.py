"""A merged folder with calibrated heads: its form is the same, ``osrm.json`` and the model card say what was done.

``osrm.json`` gains the key ``calibration``: ``settings``, and a row for each of ``tasks``: the examples (``source``,
``split``, ``sha256``, ``samples``), the map (``strength``, ``prior``, ``spread``), the mean squared leave-one-out
``error`` and that ``before``, and whether the head was changed (``used``). A task's own ``osrm.json`` has its own row.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.layers import PREFIX, WEIGHTS_NAME
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation import scores
from osrm_cli.merging.record import HEAD_NAME, TASKS_FOLDER, calibration_text
from osrm_cli.storage import provenance, safetensors_io
from osrm_cli.storage.safetensors_io import write_stream

CALIBRATION_KEY = "calibration"


def check_not_calibrated(folder: Path) -> None:
    """Check that a folder is a merged one and not calibrated yet: a map must not be folded in twice.

    Raises:
        OsrmError: If not.
    """
    facts = provenance.read_record(folder)
    if folder.is_dir() and "form" not in facts:
        raise OsrmError(f"{folder} is no merged folder", "give what 'osrm merge adapters/*' wrote")
    if CALIBRATION_KEY in facts:
        raise OsrmError(f"{folder} is calibrated already", "give the merged folder that it was made from")


def copy_merged_folder(folder: Path, stage: Path) -> None:
    """Copy a merged folder into one that is being staged, without its scores: they will not be those of the copy."""
    shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(scores.NAME, ".*"), dirs_exist_ok=True)


def write_calibrated_heads(
    stage: Path,
    heads: Mapping[str, Mapping[str, torch.Tensor]],
    settings: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put calibrated heads into a merged folder that is being staged.

    Args:
        stage: The merged folder.
        heads: Tensors by task and name in the base model; tasks whose head stays as it is may be left out.
        settings: How the maps were fitted.
        rows: What was found, by task.
    """
    facts = provenance.read_record(stage)
    for task, head in heads.items():
        if facts["form"] == "adapter":
            _replace(
                stage / TASKS_FOLDER / task / WEIGHTS_NAME, {PREFIX + name: tensor for name, tensor in head.items()}
            )
        else:
            safetensors_io.save_tensors(stage / TASKS_FOLDER / task / HEAD_NAME, head, {"task": task})
    for task, row in rows.items():
        own = stage / TASKS_FOLDER / task
        provenance.write_record(own, {**provenance.read_record(own), CALIBRATION_KEY: {"settings": settings, **row}})
    provenance.write_record(stage, {**facts, CALIBRATION_KEY: {"settings": settings, "tasks": rows}})
    path = stage / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + calibration_text(settings, rows), encoding="utf-8")


def _replace(path: Path, changed: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file anew, tensor by tensor in its own order, with some tensors changed."""
    fresh = path.with_suffix(".fresh")
    with safetensors_io.open_tensors(path) as file, write_stream(fresh, file.keys()) as stream:
        for name in file.offset_keys():
            stream.add(name, changed[name] if name in changed else file.get_tensor(name))
    fresh.replace(path)
