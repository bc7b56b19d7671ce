"""Fine-tune an adapter on one task, through transformers' Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from osrm_cli.artifacts.adapter import Adapter
from osrm_cli.artifacts.adapter_files import PREFIX
from osrm_cli.artifacts.adapter_writer import write_adapter
from osrm_cli.artifacts.provenance import Base
from osrm_cli.errors import OsrmError
from osrm_cli.language import metrics
from osrm_cli.language.base_model import Classifier
from osrm_cli.language.tasks import Example, Task
from osrm_cli.maths import procrustes
from osrm_cli.maths.lowrank import LowRank

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
        bf16: Compute in bfloat16 where that is safe, with float32 weights.
    """

    lr: float = 4e-4
    epochs: float = 3.0
    batch_size: int = 16
    seed: int = 0
    keep_best: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run has to report.

    Attributes:
        scores: Dev scores of the weights that are kept, by metric.
        epochs: One row per epoch: its number, dev scores and mean training loss.
        losses: ``(step, training loss)`` as logged.
        best_epoch: The epoch whose weights are kept.
    """

    scores: dict[str, float]
    epochs: list[dict[str, float]]
    losses: list[tuple[int, float]]
    best_epoch: float


class _Progress(TrainerCallback):
    """Hand every finished step to the console's bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.advance(1)


def adapt(classifier: Classifier, start: Adapter, freeze: str | None) -> PeftModel:
    """Put a start on a classifier: its factors and the heads are trained, the rest is frozen.

    Args:
        classifier: The base model with new heads.
        start: The adapter to begin from; layers and scaling are its own.
        freeze: ``A`` or ``B`` to leave that factor as it is.

    Raises:
        OsrmError: If the start does not fit the model.
    """
    config = PeftConfig.from_pretrained(str(start.folder))
    config.modules_to_save = list(classifier.heads)  # PEFT adds its own guesses to the list
    config.inference_mode = False
    config.base_model_name_or_path = classifier.model.name_or_path  # PEFT warns where the model lies elsewhere
    try:
        model: PeftModel = get_peft_model(classifier.model, config)
    except ValueError as error:
        raise OsrmError(f"{start.folder} does not fit its base model: {str(error).splitlines()[0]}") from None
    found = {PREFIX + layer for layer in start.layers}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if name not in found:
                raise OsrmError(f"{start.folder} has no factors for {name.removeprefix(PREFIX)}, which it targets")
            found.remove(name)
            factors = start.factors(name.removeprefix(PREFIX))
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(factors.A)
                module.lora_B["default"].weight.copy_(factors.B)
            for letter in freeze or "":
                getattr(module, f"lora_{letter}")["default"].weight.requires_grad_(False)
    if found:
        raise OsrmError(f"{start.folder} adapts {min(found).removeprefix(PREFIX)}, which its base model does not have")
    return model


def drift(model: PeftModel, start: Adapter) -> procrustes.Drift:
    """How far A has moved from the start, but for a rotation of its rows."""
    trained = get_peft_model_state_dict(model)
    starts = {layer: start.factors(layer).A for layer in start.layers}
    return procrustes.drift(starts, {layer: trained[f"{PREFIX}{layer}.lora_A.weight"].cpu() for layer in starts})


def save(model: PeftModel, start: Adapter, base: Base, heads: Sequence[str], folder: Path) -> None:
    """Write the trained adapter with its heads as a plain PEFT folder."""
    state = {name.removeprefix(PREFIX): tensor.cpu() for name, tensor in get_peft_model_state_dict(model).items()}
    updates = {
        layer: LowRank(state.pop(f"{layer}.lora_B.weight"), state.pop(f"{layer}.lora_A.weight"))
        for layer in start.layers
    }
    config = replace(start.config, base_model=base.name, revision=base.revision, modules_to_save=tuple(heads))
    write_adapter(folder, updates, config, heads=state)


def with_labels(encodings: Sequence[Encoding], examples: Sequence[Example], task: Task) -> list[Encoding]:
    """Add each example's label under the name that transformers' collators expect."""
    kind = float if task.regression else int
    return [{**e, "label": kind(x.label)} for e, x in zip(encodings, examples, strict=True) if x.label is not None]


def steps(examples: int, recipe: Recipe) -> int:
    """Optimiser steps of a run on one device."""
    return int(np.ceil(np.ceil(examples / recipe.batch_size) * recipe.epochs))


def fit(
    model: PeftModel,
    tokenizer: Any,
    task: Task,
    train: list[Encoding],
    dev: list[Encoding],
    recipe: Recipe,
    work: Path,
    device: torch.device,
    resume: bool,
    advance: Callable[[int], None],
) -> Outcome:
    """Train ``model`` in place.

    Args:
        model: A PEFT classifier; what is to be trained requires gradients.
        tokenizer: Pads on the right.
        task: Decides the loss and the metrics.
        train: Encoded training examples with labels.
        dev: Encoded dev examples with labels.
        recipe: How to train.
        work: Folder for checkpoints, one per epoch.
        device: Where to train, unless a launcher such as accelerate decides.
        resume: Continue from the newest checkpoint in ``work``.
        advance: Called with 1 after every step.

    Raises:
        OsrmError: If the loss is no longer a number.
    """
    trainer = _trainer(model, tokenizer, task, train, dev, recipe, work, device)
    trainer.add_callback(_Progress(advance))
    checkpoints = sorted(work.glob("checkpoint-*")) if resume else []
    trainer.train(resume_from_checkpoint=bool(checkpoints) or None)
    return _outcome(trainer, task, recipe)


def _trainer(
    model: PeftModel,
    tokenizer: Any,
    task: Task,
    train: list[Encoding],
    dev: list[Encoding],
    recipe: Recipe,
    work: Path,
    device: torch.device,
) -> Trainer:
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=4 * recipe.batch_size,
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
        logging_steps=max(1, steps(len(train), recipe) // 100),
        seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,  # type: ignore[arg-type]  # any sequence will do
        # Neighbours of like length share a batch, so that little of it is padding.
        eval_dataset=sorted(dev, key=lambda encoding: len(encoding["input_ids"])),  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=_scorer(task),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _scorer(task: Task) -> Callable[[Any], dict[str, float]]:
    def score(found: Any) -> dict[str, float]:
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        scores = metrics.score(task, metrics.decide(task, logits), found.label_ids)
        return {**scores, "headline": metrics.headline(task, scores)}

    return score


def _outcome(trainer: Trainer, task: Task, recipe: Recipe) -> Outcome:
    history = trainer.state.log_history
    losses = [(int(row["step"]), float(row["loss"])) for row in history if "loss" in row]
    if not all(np.isfinite(loss) for _, loss in losses):
        raise OsrmError("the training loss is no longer a number", f"try a lower --lr than {recipe.lr:g}")
    wanted = (*task.metrics, "headline")
    epochs = [
        {"epoch": round(row["epoch"], 6), **{name: row[f"eval_{name}"] for name in wanted}}
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
