"""transformers' Trainer for text tasks: the loss of completions alone, without logits that do not count."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from osrm_cli.models.text.generation import completion_logits, compute_completion_losses, token_losses
from osrm_cli.models.token_batches import collate_batch, split_batch
from osrm_cli.tasks.text.metrics import LIKELIHOOD, loss_scores
from osrm_cli.training.trainer import PenaltyTrainer

# Of one forward and backward pass, padding included: each takes a row of logits over the vocabulary, several times. As
# many as a batch of losses holds by default.
MAX_TRAINING_TOKENS = 4096


class CompletionCollator:
    """Pads a batch on the right; labels of padding do not count."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, encodings: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack encodings, see ``collate_batch``."""
        return collate_batch(encodings, self.tokenizer, torch.device("cpu"))


class CompletionTrainer(PenaltyTrainer):
    """Mean loss per completion token, and after each epoch the same on the dev examples."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the tokens of a step, of whatever model
        self._adds_penalty = True

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Loss and gradient of a batch, summed over parts of ``MAX_TRAINING_TOKENS`` tokens."""
        parts = split_batch(inputs, MAX_TRAINING_TOKENS)
        losses = []
        for place, part in enumerate(parts):
            self._adds_penalty = place == 0
            # Processes may have different numbers of parts: they exchange gradients with the last one alone.
            is_last = place == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **_: Any,
    ) -> Any:
        """The loss, with the penalty, once for a batch: its share of a step's, which may have several batches."""
        logits, labels = completion_logits(model, inputs)
        # The tokens are those of all processes, over which gradients are averaged.
        loss = token_losses(logits, labels).sum() * self.accelerator.num_processes / num_items_in_batch
        if self.penalty is not None and self._adds_penalty:
            loss = loss + self.penalty.mu * self.penalty.interference() / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Dev scores, logged as Trainer logs its own."""
        model: Any = self.model
        model.eval()
        examples: Any = self.eval_dataset
        with self.compute_loss_context_manager():
            losses = compute_completion_losses(
                model,
                examples,
                self.processing_class,
                self.args.device,
                self.args.eval_batch_size,
                lambda _: None,
            )
        scores = loss_scores(losses.mean())
        metrics = {f"eval_{name}": value for name, value in (scores | {"headline": scores[LIKELIHOOD]}).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
