"""A step of `osrm train` with `--interference-penalty` beside one without, by turns in one run of MiniLM."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.models.base_model import identify_base_model
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.tasks.loading import load_split
from osrm_cli.training import interference_penalty, trainer
from osrm_cli.training.fit import EncodedTask, TrainingConfig, fit_adapter
from osrm_cli.training.trainable_adapter import to_trainable_peft_model


class Alternating:
    """A penalty in every second step, and when each step ended."""

    def __init__(self, penalty: interference_penalty.InterferencePenalty) -> None:
        self.mu, self.penalty, self.ends = penalty.mu, penalty, [time.perf_counter()]

    def interference(self) -> torch.Tensor:
        """What it is, or nothing."""
        return self.penalty.interference() if len(self.ends) % 2 == 0 else torch.zeros(())

    def advance(self, steps: int) -> None:
        """A step has ended."""
        self.ends += [time.perf_counter()] * steps

    def seconds(self) -> tuple[list[float], list[float]]:
        """Of the steps without and with the penalty, but for the first ones."""
        steps = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        return steps[4::2], steps[5::2]


def measure(setting: Setting) -> Iterator[Row]:
    names = inputs.save_tasks(setting.folder / "data", setting.data, 64, 8)
    timing.osrm("collect", "--data", "data", "--samples", "10", "-q", cwd=setting.folder)
    timing.osrm("init", "--each", "-q", cwd=setting.folder)
    for task in [name for name in ("sst2", "qnli") if name in names] or names[:2]:
        for unit in ("base", "own"):
            without, penalised = _steps(setting.folder, task, unit, 8 if setting.quick else 60)
            goal = 1.05 if unit == "base" else None  # the other is an option that reads twice as much
            yield Row(f"a step of {task}, unit {unit}", penalised, "without the penalty", without, goal, "within")


def _steps(folder: Path, task: str, unit: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds; every batch repeats the task's middle example by length."""
    place, device = inputs.model(), torch.device("cpu")
    train, dev = (load_split(task, str(folder / "data"), split) for split in ("train", "dev"))
    bf16 = trainer.pick_training_dtype("auto", device) == torch.bfloat16
    recipe = TrainingConfig(epochs=1, bf16=bf16)
    tokenizer = load_tokenizer(place)
    classifier = load_classifier(place, train.task.num_labels, tokenizer, torch.float32, 0, None)
    start = open_adapter(folder / "starts" / task)
    model: Any = to_trainable_peft_model(classifier, start, None)
    base = identify_base_model("minilm", None)
    features = interference_penalty.open_penalty_features(folder / "features", start, base, unit)
    settings = {"interference_penalty": 1.0, "penalty_unit": unit}
    turns: Any = Alternating(interference_penalty.penalty_from_features(model, features, task, settings))
    if bf16:
        trainer.frozen_weights_to_bfloat16(model, device)
    lesson = EncodedTask.of(tokenizer, train, dev, 128)
    middle = sorted(lesson.train, key=lambda example: len(example["input_ids"]))[len(lesson.train) // 2]
    lesson = EncodedTask(train.task, [middle] * (recipe.batch_size * count), lesson.dev)
    fit_adapter(model, tokenizer, lesson, recipe, folder / "work", device, None, turns.advance, turns)
    without, penalised = turns.seconds()
    return without[: len(penalised)], penalised


if __name__ == "__main__":
    script("penalty", measure, __doc__)
