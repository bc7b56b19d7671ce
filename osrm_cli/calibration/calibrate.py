"""Calibrate the heads of a merged folder: two passes over the model for each task's unlabelled examples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters import task_data
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.task_data import TaskSample
from osrm_cli.calibration.calibrated_folder import write_calibrated_heads
from osrm_cli.calibration.head_map import calibrated_head, fit_head_map
from osrm_cli.calibration.ridge_map import RidgeMap
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation import classifiers
from osrm_cli.models.backbone import with_peft_adapter
from osrm_cli.models.batching import tokenize_examples
from osrm_cli.models.classifier import check_max_length, load_classifier, load_tokenizer
from osrm_cli.models.heads import compute_representations, find_head_layer
from osrm_cli.progress import Progress

DEFAULT_SAMPLES = 128
DEFAULT_BATCH_SIZE = 32

Heads = dict[str, dict[str, torch.Tensor]]  # by task and name in the base model
Rows = dict[str, dict[str, Any]]  # by task


@dataclass(frozen=True)
class CalibrationSettings:
    """What ``osrm.json`` says of how the maps were fitted.

    Attributes:
        samples: Examples of each task, at most.
        seed: Decides which.
        dtype: Precision of the model.
        batch_size: Examples in a batch.
    """

    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    dtype: str = "float32"
    batch_size: int = DEFAULT_BATCH_SIZE


@dataclass(frozen=True)
class Calibration:
    """What is to be done to a merged folder.

    Attributes:
        samples: The texts of every task that has a head, with its single adapter.
        settings: How they were drawn, and how the model runs.
    """

    samples: Sequence[TaskSample]
    settings: CalibrationSettings

    @classmethod
    def draw(cls, adapters: Sequence[Adapter], data: str | None, settings: CalibrationSettings) -> "Calibration":
        """Draw the texts; run nothing.

        Args:
            adapters: Those with a head, named after their tasks.
            data: What the user says; by default what each adapter was trained on.
            settings: How.

        Raises:
            OsrmError: If there is no adapter, or the data is not known or missing.
        """
        if not adapters:
            raise OsrmError("no adapter has a head that could be calibrated", "train adapters with 'osrm train'")
        return cls(task_data.draw_texts(adapters, data, settings.samples, settings.seed), settings)

    def apply(self, stage: Path, base: Path, device: torch.device, progress: Progress) -> Rows:
        """Fit each task's map and fold it into the head that the folder holds.

        Args:
            stage: A merged folder that is being staged.
            base: The base model's folder.
            device: Where to compute.
            progress: Draws a bar.

        Returns:
            What was found, by task, as ``osrm.json`` has it.

        Raises:
            OsrmError: If an adapter does not fit, or its texts are too long or too few.
        """
        check_max_length(base, max(sample.max_length for sample in self.samples))
        run = _CalibrationRun(load_tokenizer(base), device, self.settings)
        with progress("calibrate", 2 * sum(len(each.data.examples) for each in self.samples), "examples") as advance:
            heads, rows = self._fitted(stage, base, run, advance)
        write_calibrated_heads(stage, heads, asdict(self.settings), rows)
        return rows

    def _fitted(
        self, stage: Path, base: Path, run: "_CalibrationRun", advance: Callable[[int], None]
    ) -> tuple[Heads, Rows]:
        tasks = classifiers.open_classifiers(stage)
        heads, rows, alone = {}, {}, []
        model = run.load(base)
        for sample in self.samples:
            with with_peft_adapter(model, sample.adapter.folder, sample.data.task.num_labels) as single:
                alone.append(run.representations(single, sample, advance))
        if any(task.form == "model" for task in tasks.values()):
            model = run.load(stage)
        for sample, wanted in zip(self.samples, alone, strict=True):
            task = tasks[sample.adapter.name]
            with classifiers.attach_classifier(model, task, sample.data.task.num_labels) as merged:
                name, layer = find_head_layer(merged)
                found = fit_head_map(layer, run.representations(merged, sample, advance), wanted)
            rows[task.task] = _row(sample, found)
            if found.improves:
                heads[task.task] = calibrated_head(classifiers.read_head(task), name, found)
        return heads, rows


@dataclass(frozen=True)
class _CalibrationRun:
    """Where and how the models run."""

    tokenizer: Any
    device: torch.device
    settings: CalibrationSettings

    def load(self, folder: Path) -> PreTrainedModel:
        """A model whose own head is of no use."""
        dtype = getattr(torch, self.settings.dtype)
        model = load_classifier(folder, 2, self.tokenizer, dtype, 0).model
        whole: torch.nn.Module = model  # transformers' own method "to" is not typed
        whole.to(self.device)
        return model

    def representations(
        self, model: torch.nn.Module, sample: TaskSample, advance: Callable[[int], None]
    ) -> torch.Tensor:
        """Of a task's examples."""
        encodings = tokenize_examples(self.tokenizer, sample.data.examples, sample.max_length)
        size = self.settings.batch_size
        return compute_representations(model, encodings, self.tokenizer, self.device, size, advance)


def _row(sample: TaskSample, found: RidgeMap) -> dict[str, Any]:
    drawn = sample.record()
    return {
        **{name: drawn[name] for name in ("source", "split", "sha256")},
        "samples": drawn["examples"],
        **{name: getattr(found, name) for name in ("strength", "prior", "spread", "error", "before")},
        "used": found.improves,
    }
