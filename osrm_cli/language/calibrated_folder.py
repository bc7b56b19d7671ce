"""Calibrate the heads of a merged folder: two passes over the model for each task's unlabelled examples."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli.artifacts import calibrated, classifiers
from osrm_cli.language import base_model, batches, calibrating, held, scoring
from osrm_cli.language.samples import Sample
from osrm_cli.maths.calibration import Map

SAMPLES = 128
BATCH = 32

# What, how many, of which unit -> the function that advances the bar.
Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


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
class Bench:
    """Where and how the tasks' models run.

    Attributes:
        base: The base model's folder.
        device: Where to compute.
        settings: How.
        progress: Draws a bar.
    """

    base: Path
    device: torch.device
    settings: Settings
    progress: Progress

    def load(self, folder: Path) -> PreTrainedModel:
        """A model without a head of use."""
        dtype = getattr(torch, self.settings.dtype)
        model = base_model.load_classifier(folder, 2, self.tokenizer, dtype, 0).model
        whole: torch.nn.Module = model  # transformers' own method "to" is not typed
        whole.to(self.device)
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's."""
        return base_model.load_tokenizer(self.base)

    def run(self, model: torch.nn.Module, sample: Sample, advance: Callable[[int], None]) -> torch.Tensor:
        """The representations of a task's examples."""
        encodings = batches.tokenise(self.tokenizer, sample.data.examples, sample.max_length)
        size = self.settings.batch_size
        return calibrating.representations(model, encodings, self.tokenizer, self.device, size, advance)


def apply(stage: Path, samples: Sequence[Sample], bench: Bench) -> dict[str, dict[str, Any]]:
    """Fit each task's map and fold it into the head that the folder holds.

    Args:
        stage: A merged folder that is being staged.
        samples: The texts of every task that has a head, with its single adapter.
        bench: Runs the models.

    Returns:
        What was found, by task, as ``osrm.json`` has it.

    Raises:
        OsrmError: If an adapter does not fit, or its texts are too long or too few.
    """
    base_model.check_length(bench.base, max(sample.max_length for sample in samples))
    tasks = classifiers.held(stage)
    heads, rows = {}, {}
    total = 2 * sum(len(sample.data.examples) for sample in samples)
    with bench.progress("calibrate", total, "examples") as advance:
        model, alone = bench.load(bench.base), []
        for sample in samples:
            with scoring.adapted(model, sample.adapter.folder, sample.data.task.num_labels) as single:
                alone.append(bench.run(single, sample, advance))
        if any(task.form == "model" for task in tasks.values()):
            model = bench.load(stage)
        for sample, wanted in zip(samples, alone, strict=True):
            task = tasks[sample.adapter.name]
            with held.classifier(model, task, sample.data.task.num_labels) as merged:
                name, layer = calibrating.head_layer(merged)
                found = calibrating.fit(layer, bench.run(merged, sample, advance), wanted)
            rows[task.task] = _row(sample, found)
            if found.helps:
                heads[task.task] = calibrating.calibrated(held.head(task), name, found)
    calibrated.write(stage, heads, asdict(bench.settings), rows)
    return rows


def _row(sample: Sample, found: Map) -> dict[str, Any]:
    drawn = sample.facts()
    return {
        **{name: drawn[name] for name in ("source", "split", "sha256")},
        "samples": drawn["examples"],
        **{name: getattr(found, name) for name in ("strength", "prior", "spread", "error", "before")},
        "used": found.helps,
    }
