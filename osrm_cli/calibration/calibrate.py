"""Calibrate the heads of a merged folder, with two forward passes over each task's unlabelled examples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters import task_data
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.task_data import AdapterTaskSample
from osrm_cli.calibration.calibrated_folder import check_not_calibrated, copy_merged_folder, write_calibrated_heads
from osrm_cli.calibration.head_map import calibrated_head, fit_head_map
from osrm_cli.calibration.ridge_map import RidgeMap
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.merged_folder import ScoredFolder
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.classifier import with_adapter_on_backbone
from osrm_cli.models.devices import dtype_name, pick_device, pick_dtype
from osrm_cli.models.linear_head import find_head_layer
from osrm_cli.progress import Advance, Progress, no_progress
from osrm_cli.storage import atomic, provenance

DEFAULT_SAMPLES = 128
DEFAULT_BATCH_SIZE = 32

Heads = dict[str, dict[str, torch.Tensor]]  # by task and name in the base model
Rows = dict[str, dict[str, Any]]  # by task


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of the fit, as recorded in ``osrm.json``.

    Attributes:
        samples: Maximum examples per task.
        seed: Seed of the draw of examples.
        dtype: Precision of the model.
        batch_size: Maximum examples per batch.
    """

    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    dtype: str = "float32"
    batch_size: int = DEFAULT_BATCH_SIZE


@dataclass(frozen=True)
class Calibration:
    """The calibration of a merged folder.

    Attributes:
        samples: The examples of every task that has a head, with its single adapter.
        settings: Settings of the draw and of the model.
    """

    samples: Sequence[AdapterTaskSample]
    settings: CalibrationSettings

    @classmethod
    def draw(cls, adapters: Sequence[Adapter], data: str | None, settings: CalibrationSettings) -> "Calibration":
        """Draw the examples; run nothing.

        Args:
            adapters: Adapters named after their tasks; those without a head are left out.
            data: The value of ``--data``; by default the data that each adapter was trained on.
            settings: Settings of the draw.

        Raises:
            OsrmError: If none has a head, or the data is not known or missing.
        """
        adapters = [adapter for adapter in adapters if adapter.head_tensors()]
        if not adapters:
            raise OsrmError("no adapter has a head that could be calibrated", "train adapters with 'osrm train'")
        return cls(task_data.draw_adapter_texts(adapters, data, settings.samples, settings.seed), settings)

    @property
    def warnings(self) -> list[str]:
        """What the user should know about how the examples were read."""
        return list(dict.fromkeys(text for sample in self.samples for text in sample.data.warnings))

    def apply(self, stage: Path, base_dir: Path, device: torch.device, progress: Progress) -> Rows:
        """Fit each task's map and fold it into the folder's head.

        Args:
            stage: A merged folder that is being staged.
            base_dir: The base model's folder.
            device: Device of the computation.
            progress: Shows a progress bar.

        Returns:
            By task, the fit as recorded in ``osrm.json``.

        Raises:
            OsrmError: If an adapter does not fit, or its examples are too long or too few.
        """
        with progress(
            "calibrate", 2 * sum(len(sample.data.examples) for sample in self.samples), "examples"
        ) as advance:
            heads, rows = self._fit_heads(stage, base_dir, device, advance)
        write_calibrated_heads(stage, heads, asdict(self.settings), rows)
        return rows

    def _fit_heads(self, stage: Path, base_dir: Path, device: torch.device, advance: Advance) -> tuple[Heads, Rows]:
        dtype, size = getattr(torch, self.settings.dtype), self.settings.batch_size
        merged = ScoredFolder.open(stage)
        backbone = Backbone.load(base_dir, device, dtype)
        backbone.check_max_length(max(sample.max_length for sample in self.samples))
        encodings = [backbone.tokenize(sample.data.examples, sample.max_length) for sample in self.samples]
        targets = []
        for sample, texts in zip(self.samples, encodings, strict=True):
            with with_adapter_on_backbone(backbone.model, sample.adapter, sample.data.task.num_labels) as model:
                targets.append(backbone.representations(model, texts, size, advance))
        if merged.form == "model":
            backbone = Backbone.load(stage, device, dtype)
        heads, rows = {}, {}
        for sample, texts, target in zip(self.samples, encodings, targets, strict=True):
            classifier = merged.tasks[sample.adapter.name]
            with backbone.attach(classifier, sample.data.task.num_labels) as model:
                name, layer = find_head_layer(model)
                ridge_map = fit_head_map(layer, backbone.representations(model, texts, size, advance), target)
            rows[classifier.task] = _describe_calibration_fit(sample, ridge_map)
            if ridge_map.improves:
                heads[classifier.task] = calibrated_head(classifier.read_head(), name, ridge_map)
        return heads, rows


def _describe_calibration_fit(sample: AdapterTaskSample, ridge_map: RidgeMap) -> dict[str, Any]:
    return {
        **{name: sample.record[name] for name in ("source", "split", "sha256")},
        "samples": sample.record["examples"],
        **{name: getattr(ridge_map, name) for name in ("strength", "prior", "spread", "error", "before")},
        "used": ridge_map.improves,
    }


def prepare_calibration(
    samples: int = DEFAULT_SAMPLES, seed: int = 0
) -> Callable[[Sequence[Adapter], str | None], Calibration]:
    """The calibration of a merge while it is written, for ``merge_adapters``.

    Args:
        samples: Training examples read per task.
        seed: Of the draw of examples.

    Returns:
        What draws the examples, given the adapters and ``data``.

    Raises:
        OsrmError: In the merge, if no adapter has a head, or the data is not known or missing.

    Example:
        >>> from osrm_cli import prepare_calibration, merge_adapters
        >>> adapters = ["adapters/mini-inference", "adapters/mini-mood"]
        >>> merged = merge_adapters(adapters, calibrate=prepare_calibration(samples=128), out="merged-calibrated")
        >>> merged.summary["calibration"]["mini-mood"]["used"]
        True
    """
    return partial(Calibration.draw, settings=CalibrationSettings(samples, seed))


@dataclass(frozen=True)
class CalibrationResult:
    """Result of ``calibrate_folder``.

    Attributes:
        path: The output folder; not written under ``dry_run``.
        tasks: Names of the tasks.
        rows: By task, the fit as recorded in ``osrm.json``; empty under ``dry_run``.
        notes: Tasks whose head was not changed.
        warnings: Warnings about the data.
    """

    path: Path
    tasks: Sequence[str]
    rows: Rows = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: Sequence[str] = ()


def calibrate_folder(
    folder: Path | str = "merged",
    *,
    samples: int = DEFAULT_SAMPLES,
    adapters: Path | str | None = None,
    data: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | str = "calibrated",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> CalibrationResult:
    """Map each task's merged representation back to its single adapter's, inside the head; no label is read.

    Args:
        folder: A merged folder whose tasks have heads.
        samples: Training examples read per task.
        adapters: Folder that contains the single adapters, if they have moved.
        data: ``hub``, ``mini`` or a folder; by default the data that each adapter was trained on.
        model: The base model, if it has moved.
        revision: Its revision.
        batch_size: Maximum examples per batch.
        seed: Of the draw of examples.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        out: Folder to write.
        overwrite: Replace the folder if it exists.
        dry_run: Check everything and write nothing.
        progress: Shows a progress bar.

    Raises:
        OsrmError: If the folder is not merged or is calibrated already, or adapters, data or base model are missing.

    Example:
        >>> from osrm_cli import calibrate_folder
        >>> calibrate_folder("merged", samples=128).rows["mini-mood"]["used"]
        True
    """
    folder, path = Path(folder), Path(out)
    check_not_calibrated(folder)
    atomic.refuse_existing(path, overwrite)
    merged = ScoredFolder.open(folder)
    for classifier in merged.tasks.values():
        classifier.read_head()  # errors name this folder, not the copy that is staged
    base_dir, _ = merged.resolve_base_model(model, revision)
    torch_device = pick_device(device)
    settings = CalibrationSettings(samples, seed, dtype_name(pick_dtype(dtype, torch_device)), batch_size)
    single_adapters = merged.open_single_adapters(Path(adapters) if adapters else None)
    calibration = Calibration.draw(single_adapters, data, settings)
    result = CalibrationResult(path, list(merged.tasks), warnings=calibration.warnings)
    if dry_run:
        return result
    with atomic.write_folder(path, overwrite) as stage:
        copy_merged_folder(folder, stage)
        result.rows.update(calibration.apply(stage, base_dir, torch_device, progress))
        provenance.write_digests(stage)
    uncalibrated = [task for task, row in result.rows.items() if not row["used"]]
    result.notes.extend(
        f"{task}: no map reduces the error on held-out examples: the head is not changed" for task in uncalibrated
    )
    return result
