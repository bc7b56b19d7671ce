"""Fine-tune an adapter on one task, through transformers' Trainer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from osrm_cli.models import batching as batches
from osrm_cli.models import fast_dropout as dropout
from osrm_cli.tasks.metrics import compute_scores, predictions_from_logits, primary_score
from osrm_cli.tasks.task import Task, TaskSplit
from osrm_cli.training.interference_penalty import Penalty
from osrm_cli.training.trainer import PenalisedTrainer, Watch

Encoding = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's, but for batch size and epochs.

    Attributes:
        lr: Peak learning rate; a linear schedule with 6 % warm-up leads to it and away from it.
        epochs: Passes over the training examples.
        batch_size: Examples per device and step.
        seed: Order of the examples, dropout.
        keep_best: Keep the epoch with the best dev score instead of the last one.
        bf16: Compute in bfloat16 where that is safe, with float32 weights for what is trained.
        dropout: Of the base model; ``None`` keeps its own rates.
    """

    lr: float = 4e-4
    epochs: float = 3.0
    batch_size: int = 16
    seed: int = 0
    keep_best: bool = False
    bf16: bool = False
    dropout: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run has to report.

    Attributes:
        scores: Dev scores of the weights that are kept, by metric.
        epochs: One row per epoch: its number, dev scores, and the interference where it is penalised.
        losses: ``(step, training loss)`` as logged.
        best_epoch: The epoch whose weights are kept.
    """

    scores: dict[str, float]
    epochs: list[dict[str, float]]
    losses: list[tuple[int, float]]
    best_epoch: float


@dataclass(frozen=True)
class Lesson:
    """What is learned.

    Attributes:
        task: Decides the loss and the metrics.
        train: Encoded training examples with labels.
        dev: Encoded dev examples with labels.
    """

    task: Task
    train: Sequence[Encoding]
    dev: Sequence[Encoding]

    @classmethod
    def of(cls, tokenizer: Any, train: TaskSplit, dev: TaskSplit, max_length: int) -> "Lesson":
        """Tokenise two splits of a task.

        Raises:
            OsrmError: If an example has no label.
        """
        return cls(train.task, _encoded(tokenizer, train, max_length), _encoded(tokenizer, dev, max_length))

    def steps(self, recipe: Recipe, processes: int = 1) -> int:
        """Optimiser steps of a whole run."""
        return math.ceil(math.ceil(len(self.train) / (recipe.batch_size * processes)) * recipe.epochs)


def _encoded(tokenizer: Any, data: TaskSplit, max_length: int) -> list[Encoding]:
    """Encodings with each example's label, under the name that transformers' collators expect."""
    kind = float if data.task.regression else int
    encodings = batches.tokenise(tokenizer, data.examples, max_length)
    return [{**encoding, "label": kind(label)} for encoding, label in zip(encodings, data.labels, strict=True)]


def fit(
    model: PeftModel,
    tokenizer: Any,
    lesson: Lesson,
    recipe: Recipe,
    work: Path,
    device: torch.device,
    checkpoint: Path | None,
    advance: Callable[[int], None],
    penalty: Penalty | None = None,
) -> Outcome:
    """Train ``model`` in place.

    Args:
        model: A PEFT classifier; what is to be trained requires gradients.
        tokenizer: Pads on the right.
        lesson: What is learned.
        recipe: How to train.
        work: Folder for checkpoints, one per epoch.
        device: Where to train, unless a launcher such as accelerate decides.
        checkpoint: Where to go on from, or ``None``.
        advance: Called with the number of steps done since the last call.
        penalty: Added to the loss of every step.

    Raises:
        OsrmError: If the loss is no longer a number.
    """
    trainer = PenalisedTrainer(
        penalty,
        model=model,
        args=_arguments(lesson, recipe, work, device),
        train_dataset=lesson.train,
        # Neighbours of like length share a batch, so that little of it is padding; too large a batch fails at once.
        eval_dataset=sorted(lesson.dev, key=lambda encoding: -len(encoding["input_ids"])),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=_scorer(lesson.task),
        callbacks=[Watch(advance, penalty)],
    )
    trainer.remove_callback(PrinterCallback)
    with dropout.cheap(device):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _outcome(trainer, lesson.task, recipe)


def _arguments(lesson: Lesson, recipe: Recipe, work: Path, device: torch.device) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.lr,
        lr_scheduler_type="linear",
        warmup_steps=0.06,  # below 1: a share of all steps
        weight_decay=0.0,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=recipe.keep_best,
        metric_for_best_model="headline",
        greater_is_better=True,
        logging_steps=max(1, lesson.steps(recipe) // 100),
        logging_nan_inf_filter=False,  # it would show the mean of the losses before instead
        seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
    )


def _scorer(task: Task) -> Callable[[Any], dict[str, float]]:
    def score(found: Any) -> dict[str, float]:
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        scores = compute_scores(task, predictions_from_logits(task, logits), found.label_ids)
        return {**scores, "headline": primary_score(task, scores)}

    return score


def _outcome(trainer: Trainer, task: Task, recipe: Recipe) -> Outcome:
    history = trainer.state.log_history
    losses = [(int(row["step"]), float(row["loss"])) for row in history if "loss" in row]
    wanted = (*task.metrics, "headline")
    interference = {row["step"]: {"interference": row["interference"]} for row in history if "interference" in row}
    epochs = [
        {
            "epoch": round(row["epoch"], 6),
            **{name: row[f"eval_{name}"] for name in wanted},
            **interference.get(row["step"], {}),
        }
        for row in history
        if "eval_headline" in row
    ]
    kept = max(epochs, key=lambda row: row["headline"]) if recipe.keep_best else epochs[-1]
    return Outcome({name: kept[name] for name in wanted}, epochs, losses, kept["epoch"])


def draw_losses(outcome: Outcome, title: str, path: Path) -> None:
    """Draw the loss curve and the dev score of each epoch as a PNG, the same bytes for the same numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*outcome.losses, strict=True), color="tab:blue", label="training loss")
    axes.set(title=title, xlabel="step", ylabel="training loss")
    axes.set_ylim(bottom=0)
    scores = axes.twinx()
    last = outcome.losses[-1][0] / outcome.epochs[-1]["epoch"]
    scores.plot(
        [r["epoch"] * last for r in outcome.epochs], [r["headline"] for r in outcome.epochs], "o--", color="tab:orange"
    )
    scores.set_ylabel("dev score", color="tab:orange")
    figure.savefig(path, dpi=120, metadata={"Software": None})
