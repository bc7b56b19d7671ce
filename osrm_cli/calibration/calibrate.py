"""Calibrate the heads of a merged folder: two passes over the model for each task's unlabelled examples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters import task_data
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.task_data import Sample
from osrm_cli.calibration import calibrated_folder as calibrated
from osrm_cli.calibration import head_map as calibrating
from osrm_cli.calibration.ridge_map import Map
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation import classifiers
from osrm_cli.models import backbone as scoring
from osrm_cli.models import batching as batches
from osrm_cli.models import classifier as base_model
from osrm_cli.models.heads import head_layer, representations
from osrm_cli.progress import Progress

SAMPLES = 128
BATCH = 32

Heads = dict[str, dict[str, torch.Tensor]]  # by task and name in the base model
Rows = dict[str, dict[str, Any]]  # by task


@dataclass(frozen=True)
class Settings:
    """What ``osrm.json`` says of how the maps were fitted.

    Attributes:
        samples: Examples of each task, at most.
        seed: Decides which.
        dtype: Precision of the model.
        batch_size: Examples in a batch.
    """

    samples: int = SAMPLES
    seed: int = 0
    dtype: str = "float32"
    batch_size: int = BATCH


@dataclass(frozen=True)
class Calibration:
    """What is to be done to a merged folder.

    Attributes:
        samples: The texts of every task that has a head, with its single adapter.
        settings: How they were drawn, and how the model runs.
    """

    samples: Sequence[Sample]
    settings: Settings

    @classmethod
    def of(cls, adapters: Sequence[Adapter], data: str | None, settings: Settings) -> "Calibration":
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
        return cls(task_data.unlabelled(adapters, data, settings.samples, settings.seed), settings)

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
        base_model.check_length(base, max(sample.max_length for sample in self.samples))
        run = _Run(base_model.load_tokenizer(base), device, self.settings)
        with progress("calibrate", 2 * sum(len(each.data.examples) for each in self.samples), "examples") as advance:
            heads, rows = self._fitted(stage, base, run, advance)
        calibrated.write(stage, heads, asdict(self.settings), rows)
        return rows

    def _fitted(self, stage: Path, base: Path, run: "_Run", advance: Callable[[int], None]) -> tuple[Heads, Rows]:
        tasks = classifiers.held(stage)
        heads, rows, alone = {}, {}, []
        model = run.load(base)
        for sample in self.samples:
            with scoring.adapted(model, sample.adapter.folder, sample.data.task.num_labels) as single:
                alone.append(run.representations(single, sample, advance))
        if any(task.form == "model" for task in tasks.values()):
            model = run.load(stage)
        for sample, wanted in zip(self.samples, alone, strict=True):
            task = tasks[sample.adapter.name]
            with classifiers.classifier(model, task, sample.data.task.num_labels) as merged:
                name, layer = head_layer(merged)
                found = calibrating.fit(layer, run.representations(merged, sample, advance), wanted)
            rows[task.task] = _row(sample, found)
            if found.helps:
                heads[task.task] = calibrating.calibrated(classifiers.head(task), name, found)
        return heads, rows


@dataclass(frozen=True)
class _Run:
    """Where and how the models run."""

    tokenizer: Any
    device: torch.device
    settings: Settings

    def load(self, folder: Path) -> PreTrainedModel:
        """A model whose own head is of no use."""
        dtype = getattr(torch, self.settings.dtype)
        model = base_model.load_classifier(folder, 2, self.tokenizer, dtype, 0).model
        whole: torch.nn.Module = model  # transformers' own method "to" is not typed
        whole.to(self.device)
        return model

    def representations(self, model: torch.nn.Module, sample: Sample, advance: Callable[[int], None]) -> torch.Tensor:
        """Of a task's examples."""
        encodings = batches.tokenise(self.tokenizer, sample.data.examples, sample.max_length)
        size = self.settings.batch_size
        return representations(model, encodings, self.tokenizer, self.device, size, advance)


def _row(sample: Sample, found: Map) -> dict[str, Any]:
    drawn = sample.facts()
    return {
        **{name: drawn[name] for name in ("source", "split", "sha256")},
        "samples": drawn["examples"],
        **{name: getattr(found, name) for name in ("strength", "prior", "spread", "error", "before")},
        "used": found.helps,
    }
