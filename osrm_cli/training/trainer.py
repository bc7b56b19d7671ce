"""transformers' Trainer with the interference penalty, a monitor of the loss, and cheaper bfloat16."""

import math
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from osrm_cli.errors import OsrmError
from osrm_cli.models.devices import pick_dtype
from osrm_cli.models.target_modules import is_conv1d
from osrm_cli.training.interference_penalty import InterferencePenalty


class PenaltyTrainer(Trainer):
    """transformers' Trainer with the penalty added to the loss, and dev examples in their own order."""

    def __init__(self, penalty: InterferencePenalty | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.penalty = penalty
        # Classifiers take the number of a step's examples and ignore it: Trainer must average over its batches itself.
        self.model_accepts_loss_kwargs = False

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Dev examples in their own order: Trainer's sampler shuffles them before it groups by length."""
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        loader: Any = DataLoader(
            examples,
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss, in training with the penalty."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.penalty is None or isinstance(loss, tuple):  # in evaluation, the loss comes with the outputs
            return loss
        return loss + self.penalty.mu * self.penalty.interference()


def frozen_weights_to_bfloat16(model: PeftModel, device: torch.device) -> None:
    """Convert frozen weights to bfloat16: training is faster, with the same result.

    Autocast would cast every frozen weight in every step. On a CPU, the fused attention kernel's backward pass takes
    longer in bfloat16 than the rest of the step, and its plain form longer than transformers' own.
    """
    for name, layer in model.named_modules():
        if (
            isinstance(layer, torch.nn.Linear) or is_conv1d(layer)
        ) and ".lora_" not in name:  # a frozen factor is part of the output
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.bfloat16()
    if device.type == "cpu":
        base: Any = model.get_base_model()
        base.set_attn_implementation("eager")


class DivergenceError(OsrmError):
    """The loss is not finite: nothing of the run is worth resuming."""


class TrainingMonitor(TrainerCallback):
    """Report steps, stop when the loss is not finite, and log every loss before a checkpoint.

    Attributes:
        has_stepped: Whether a step is done; until then, a resumed run reads its checkpoint.
    """

    def __init__(self, advance: Callable[[int], None], penalty: InterferencePenalty | None) -> None:
        self.advance = advance
        self.penalty = penalty
        self.has_stepped = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the steps of an unfinished run."""
        self.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report a step."""
        self.has_stepped = True
        self.advance(1)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log the losses and the interference."""
        control.should_log = True  # losses since the last logged step would be lost to a resumed run
        if self.penalty:
            with torch.no_grad():
                interference = float(self.penalty.interference())
            state.log_history.append({"epoch": state.epoch, "step": state.global_step, "interference": interference})

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop when the loss is not finite."""
        loss = state.log_history[-1].get("loss", 0.0)
        if not math.isfinite(loss):
            hint = f"try a lower --lr than {args.learning_rate:g}"
            raise DivergenceError(f"the training loss is {loss} after step {state.global_step}", hint)


def pick_training_dtype(name: str, device: torch.device) -> torch.dtype:
    """Like ``pick_dtype``, but ``auto`` also takes bfloat16 on a CPU with matrix units (AMX), eight times faster there.

    Training keeps float32 master weights and is noisy anyway; single measurements stay in float32.
    """
    if name == "auto" and device.type == "cpu" and _has_amx():
        return torch.bfloat16
    return pick_dtype(name, device)


def _has_amx() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.11 cannot tell
    return bool(capabilities.get("amx_bf16", False))
