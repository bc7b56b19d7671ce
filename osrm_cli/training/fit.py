"""Fine-tune an adapter on one task with transformers' Trainer."""

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

from osrm_cli.errors import OsrmError, first_line
from osrm_cli.models.text.completions import CompletionTokenizer
from osrm_cli.models.token_batches import tokenize_for_classifier
from osrm_cli.tasks import metrics
from osrm_cli.tasks.label_sets import label_matrix, label_sets_from_logits
from osrm_cli.tasks.task import Task, TaskSplit
from osrm_cli.tasks.text.metrics import LOSS_METRICS
from osrm_cli.training.checkpoints import RESUME_HINT, check_training_checkpoint
from osrm_cli.training.completion_trainer import CompletionCollator, CompletionTrainer
from osrm_cli.training.fast_dropout import use_fast_dropout
from osrm_cli.training.interference_penalty import InterferencePenalty
from osrm_cli.training.trainer import PenaltyTrainer, TrainingMonitor

Encoding = dict[str, Any]


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters; the defaults are the paper's, except batch size and epochs.

    Attributes:
        lr: Peak learning rate of a linear schedule with 6 % warm-up.
        epochs: Passes over the training examples.
        batch_size: Examples per device and step.
        seed: Seed of the order of the examples and of dropout.
        keep_best: Keep the epoch with the best dev score instead of the last one.
        bf16: Compute in bfloat16 where that is safe; trained weights are float32.
        dropout: Dropout rate of the base model; ``None`` keeps its own rates.
        accumulation: Batches whose gradients are added up before a step.
        checkpointing: Compute activations again in the backward pass instead of keeping them.
    """

    lr: float = 4e-4
    epochs: float = 3.0
    batch_size: int = 16
    seed: int = 0
    keep_best: bool = False
    bf16: bool = False
    dropout: float | None = None
    accumulation: int = 1
    checkpointing: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run.

    Attributes:
        scores: Dev scores of the final weights, by metric.
        epochs: One row per epoch: its number, dev scores, and the interference if it is penalized.
        losses: ``(step, training loss)`` as logged.
        best_epoch: The epoch of the final weights.
    """

    scores: dict[str, float]
    epochs: list[dict[str, float]]
    losses: list[tuple[int, float]]
    best_epoch: float


@dataclass(frozen=True)
class EncodedTask:
    """A task's tokenized examples.

    Attributes:
        task: Determines the loss and the metrics.
        train: Encoded training examples with labels.
        dev: Encoded dev examples with labels.
    """

    task: Task
    train: Sequence[Encoding]
    dev: Sequence[Encoding]

    @classmethod
    def of(cls, tokenizer: Any, train: TaskSplit, dev: TaskSplit, max_length: int) -> "EncodedTask":
        """Tokenize two splits of a task.

        Raises:
            OsrmError: If an example has no label.
        """
        return cls(
            train.task,
            _encode_with_labels(tokenizer, train, max_length),
            _encode_with_labels(tokenizer, dev, max_length),
        )

    @classmethod
    def of_text(cls, completions: CompletionTokenizer, train: TaskSplit, dev: TaskSplit) -> "EncodedTask":
        """Tokenize two splits of a task that is answered with text.

        Raises:
            OsrmError: If an example cannot be used.
        """
        return cls(train.task, completions.encode(train.text_examples)[1], completions.encode(dev.text_examples)[1])

    def steps(self, config: TrainingConfig, processes: int = 1) -> int:
        """Optimizer steps of a whole run."""
        batches = math.ceil(len(self.train) / (config.batch_size * processes))
        return math.ceil(math.ceil(batches / config.accumulation) * config.epochs)


def _encode_with_labels(tokenizer: Any, data: TaskSplit, max_length: int) -> list[Encoding]:
    """Encodings with each example's label, under the name that transformers' collators expect."""
    encodings = tokenize_for_classifier(tokenizer, data.examples, max_length)
    labels: Sequence[Any] = data.labels
    if data.task.is_multi_label:
        labels = label_matrix(labels, data.task.num_labels).astype(float).tolist()
    elif data.task.regression:
        labels = [float(label) for label in labels]
    return [{**encoding, "label": label} for encoding, label in zip(encodings, labels, strict=True)]


def fit_adapter(
    model: PeftModel,
    tokenizer: Any,
    encoded_task: EncodedTask,
    config: TrainingConfig,
    checkpoint_folder: Path,
    device: torch.device,
    checkpoint: Path | None,
    advance: Callable[[int], None],
    penalty: InterferencePenalty | None = None,
) -> TrainingResult:
    """Train ``model`` in place.

    Args:
        model: A PEFT model of the task's kind; trainable parameters require gradients.
        tokenizer: Pads on the right.
        encoded_task: The task to learn.
        config: Hyperparameters.
        checkpoint_folder: Folder for checkpoints, one per epoch.
        device: Device of the computation, unless a launcher such as accelerate decides.
        checkpoint: Checkpoint to resume from, or ``None``.
        advance: Called with the number of steps done since the last call.
        penalty: Added to the loss of every step.

    Raises:
        DivergenceError: If the loss is not finite.
        OsrmError: If the checkpoint cannot be resumed.
    """
    is_text = encoded_task.task.is_text
    monitor = TrainingMonitor(advance, penalty)
    trainer = (CompletionTrainer if is_text else PenaltyTrainer)(
        penalty,
        model=model,
        args=_training_arguments(encoded_task, config, checkpoint_folder, device),
        train_dataset=encoded_task.train,
        # Examples of similar length share a batch, which reduces padding; too large a batch fails at once.
        eval_dataset=sorted(encoded_task.dev, key=lambda encoding: -len(encoding["input_ids"])),
        data_collator=CompletionCollator(tokenizer) if is_text else DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=None if is_text else _make_dev_metrics_function(encoded_task.task),
        callbacks=[monitor],
    )
    trainer.remove_callback(PrinterCallback)
    if checkpoint:
        check_training_checkpoint(checkpoint, model)
    if config.checkpointing:
        base: Any = model.get_base_model()
        # Recent transformers deprecate the name that older versions have.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        base.enable_input_require_grads()  # the first layers are frozen
    with use_fast_dropout(device):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:
            if checkpoint is None or monitor.has_stepped or isinstance(error, OsrmError):
                raise
            raise OsrmError(f"{checkpoint} cannot be resumed: {first_line(error)}", RESUME_HINT) from error
    return _collect_training_result(trainer, encoded_task.task, config)


def _training_arguments(
    encoded_task: EncodedTask, config: TrainingConfig, checkpoint_folder: Path, device: torch.device
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoint_folder),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=0.06,  # below 1: a share of all steps
        weight_decay=0.0,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=config.keep_best,
        metric_for_best_model="headline",
        greater_is_better=True,
        logging_steps=max(1, encoded_task.steps(config) // 100),
        logging_nan_inf_filter=False,  # otherwise the mean of the earlier losses is logged instead
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
    )


def _make_dev_metrics_function(task: Task) -> Callable[[Any], dict[str, float]]:
    def score(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        labels = label_sets_from_logits(prediction.label_ids) if task.is_multi_label else prediction.label_ids
        scores = metrics.compute_task_scores(task, metrics.predictions_from_logits(task, logits), labels)
        return {**scores, "headline": metrics.primary_score(task, scores)}

    return score


def _collect_training_result(trainer: Trainer, task: Task, config: TrainingConfig) -> TrainingResult:
    history = trainer.state.log_history
    losses = [(int(row["step"]), float(row["loss"])) for row in history if "loss" in row]
    score_names = (*(LOSS_METRICS if task.is_text else task.metrics), "headline")
    interference = {row["step"]: {"interference": row["interference"]} for row in history if "interference" in row}
    epochs = [
        {
            "epoch": round(row["epoch"], 6),
            **{name: row[f"eval_{name}"] for name in score_names},
            **interference.get(row["step"], {}),
        }
        for row in history
        if "eval_headline" in row
    ]
    chosen_epoch = max(epochs, key=lambda row: row["headline"]) if config.keep_best else epochs[-1]
    return TrainingResult({name: chosen_epoch[name] for name in score_names}, epochs, losses, chosen_epoch["epoch"])


def draw_training_curves(result: TrainingResult, title: str, path: Path) -> None:
    """Draw the loss curve and the dev score of each epoch as a PNG; equal numbers give equal bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*result.losses, strict=True), color="tab:blue", label="training loss")
    axes.set(title=title, xlabel="step", ylabel="training loss")
    axes.set_ylim(bottom=0)
    scores = axes.twinx()
    last = result.losses[-1][0] / result.epochs[-1]["epoch"]
    scores.plot(
        [r["epoch"] * last for r in result.epochs], [r["headline"] for r in result.epochs], "o--", color="tab:orange"
    )
    scores.set_ylabel("dev score", color="tab:orange")
    figure.savefig(path, dpi=120, metadata={"Software": None})
