"""A merged folder with calibrated heads: its form is the same, ``osrm.json`` and the model card record the calibration.

``osrm.json`` gains the key ``calibration``: ``settings``, and a row for each of ``tasks``: the examples (``source``,
``split``, ``sha256``, ``samples``), the map (``strength``, ``prior``, ``spread``), the mean squared leave-one-out
``error`` and that ``before``, and whether the head was changed (``used``). A task's own ``osrm.json`` has its own row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.layers import PREFIX, WEIGHTS_NAME
from osrm_cli.errors import OsrmError, library_errors
from osrm_cli.evaluation import scores
from osrm_cli.evaluation.model_card import card_without_scores
from osrm_cli.merging.record import HEAD_NAME, TASKS_FOLDER
from osrm_cli.storage import input_files, provenance, records, safetensors_writer
from osrm_cli.storage.atomic import copy_files_to_stage
from osrm_cli.storage.input_files import check_input_folder
from osrm_cli.storage.safetensors_writer import write_safetensors

CALIBRATION_KEY = "calibration"


def check_not_calibrated(folder: Path) -> None:
    """Check that a folder is merged and not calibrated yet: a map must not be folded in twice.

    Raises:
        OsrmError: If it is not.
    """
    record = records.read_record(folder)
    if folder.is_dir() and "form" not in record:
        raise OsrmError(f"{folder} is not a merged folder", "give a folder written by 'osrm merge adapters/*'")
    if CALIBRATION_KEY in record:
        raise OsrmError(f"{folder} is calibrated already", "give the merged folder that it was made from")


def copy_merged_folder(folder: Path, stage: Path) -> None:
    """Copy a merged folder into one that is being staged, without its scores, which do not apply to the copy."""
    check_input_folder(folder, recursive=True)
    copy_files_to_stage(folder, stage, lambda name: name.name != scores.SCORES_NAME)


def write_calibrated_heads(
    stage: Path,
    heads: Mapping[str, Mapping[str, torch.Tensor]],
    settings: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write calibrated heads into a merged folder that is being staged.

    Args:
        stage: The merged folder.
        heads: Tensors by task and name in the base model; tasks whose head does not change may be left out.
        settings: Settings of the fit.
        rows: The fit, by task.
    """
    record = records.read_record(stage)
    for task, head in heads.items():
        if record["form"] == "adapter":
            _replace_head_tensors(
                stage / TASKS_FOLDER / task / WEIGHTS_NAME, {PREFIX + name: tensor for name, tensor in head.items()}
            )
        else:
            safetensors_writer.save_tensors(stage / TASKS_FOLDER / task / HEAD_NAME, head, {"task": task})
    for task, row in rows.items():
        task_folder = stage / TASKS_FOLDER / task
        provenance.write_record(
            task_folder, {**records.read_record(task_folder), CALIBRATION_KEY: {"settings": settings, **row}}
        )
    provenance.write_record(stage, {**record, CALIBRATION_KEY: {"settings": settings, "tasks": rows}})
    path = stage / "README.md"
    with library_errors(f"{path.name} of the merged folder cannot be read", "merge again, or remove its scores"):
        card = card_without_scores(path.read_text(encoding="utf-8"))
    path.write_text(card + _calibration_card_section(settings, rows), encoding="utf-8")


def _replace_head_tensors(path: Path, replacements: Mapping[str, torch.Tensor]) -> None:
    """Rewrite a safetensors file, tensor by tensor in its own order, with some tensors changed."""
    staged = path.with_suffix(".fresh")
    with input_files.open_safetensors(path) as file, write_safetensors(staged, file.keys()) as stream:
        for name in file.offset_keys():
            stream.add(name, replacements[name] if name in replacements else file.get_tensor(name))
    staged.replace(path)


def _calibration_card_section(settings: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The section of the model card on calibrated heads."""
    table = "\n".join(
        f"| {task} | {row['samples']} | {row['before']:.3g} | {row['error']:.3g} | "
        f"{'calibrated' if row['used'] else 'as merged'} |"
        for task, row in rows.items()
    )
    return f"""
## Calibrated

Into each head a linear map is folded that leads the merged model's representation of unlabelled training examples back
to the single adapter's (`osrm calibrate --samples {settings["samples"]} --seed {settings["seed"]}`). Mean squared
difference of the representations, on examples left out of the fit:

| task | examples | before | after | head |
| --- | --- | --- | --- | --- |
{table}
"""
