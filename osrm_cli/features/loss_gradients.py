"""The gradient of a task's loss with respect to its target layers' weights, before any of them is trained.

With a new head it means little: the head's random weights determine its directions. Therefore the head's last layer is
fitted first, to the frozen model's output, and the gradient is taken on examples that it was not fitted to: the two
halves of the examples change roles, and both gradients are added. Other new layers of a head stay as the seed draws
them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.models import linear_head
from osrm_cli.models.target_modules import is_conv1d
from osrm_cli.models.text.generation import completion_logits, token_losses
from osrm_cli.models.token_batches import IGNORED, Encoding, collate_batch, group_by_length
from osrm_cli.tasks.draws import draw_order_by_hash
from osrm_cli.tasks.label_sets import find_label_without_contrast
from osrm_cli.tasks.task import TaskSplit


def compute_loss_gradients(
    model: torch.nn.Module,
    layers: Mapping[str, torch.nn.Module],
    data: TaskSplit,
    encodings: Sequence[Encoding],
    tokenizer: Any,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, torch.Tensor]:
    """``dL/dW`` of the mean loss by target layer, ``(d_out, d_in)``, float32.

    Args:
        model: A classifier for the task, in evaluation mode; its head's last layer is fitted in place.
        layers: Target layers by name.
        data: Labelled examples.
        encodings: The same as tokens.
        tokenizer: Knows how to pad.
        batch_size: Examples in a batch.
        advance: Called with the number of examples done.

    Raises:
        OsrmError: If labels are missing, or a class has fewer than two examples.
    """
    halves, labels = _halve_gradient_sample(data), data.labels
    _, head = linear_head.find_head_layer(model)
    device = next(model.parameters()).device
    inputs = linear_head.compute_representations(
        model, encodings, tokenizer, device, batch_size, lambda _: None
    ).double()
    gradients = _LossGradientSums(model, layers)
    for fitted, evaluated in (halves, halves[::-1]):
        linear_head.fit_linear_head(head, data.task, inputs[fitted], [labels[i] for i in fitted])
        for rows in group_by_length([len(encodings[i]["input_ids"]) for i in evaluated], batch_size):
            chosen = [evaluated[row] for row in rows]
            batch = collate_batch([encodings[i] for i in chosen], tokenizer, device)
            gradients.add(
                linear_head.sum_classifier_losses(model(**batch).logits, data.task, [labels[i] for i in chosen])
            )
            advance(len(chosen))
    return gradients.divided(len(encodings))


def compute_completion_gradients(
    model: torch.nn.Module,
    layers: Mapping[str, torch.nn.Module],
    encodings: Sequence[Encoding],
    tokenizer: Any,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, torch.Tensor]:
    """``dL/dW`` of the mean loss per completion token by target layer, ``(d_out, d_in)``, float32.

    Args:
        model: A language model in evaluation mode.
        layers: Target layers by name.
        encodings: With ``labels``, from ``CompletionTokenizer.encode``.
        tokenizer: Knows how to pad.
        batch_size: Examples in a batch.
        advance: Called with the number of examples done.
    """
    device = next(model.parameters()).device
    gradients, tokens = _LossGradientSums(model, layers), 0
    for rows in group_by_length([len(encoding["input_ids"]) for encoding in encodings], batch_size):
        logits, labels = completion_logits(model, collate_batch([encodings[i] for i in rows], tokenizer, device))
        gradients.add(token_losses(logits, labels).sum())
        tokens += int((labels != IGNORED).sum())
        advance(len(rows))
    model.requires_grad_(False)
    return gradients.divided(tokens)


class _LossGradientSums:
    """Gradients of losses with respect to the layers' weights, the only ones of the model that get any."""

    def __init__(self, model: torch.nn.Module, layers: Mapping[str, torch.nn.Module]) -> None:
        model.requires_grad_(False)
        self._layers = layers
        self._weights = [layer.get_parameter("weight").requires_grad_() for layer in layers.values()]
        self._sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in self._weights]

    def add(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients."""
        for total, gradient in zip(self._sums, torch.autograd.grad(loss, self._weights), strict=True):
            total += gradient

    def divided(self, count: int) -> dict[str, torch.Tensor]:
        """The sums by layer over a count, ``(d_out, d_in)``."""
        named = zip(self._layers.items(), self._sums, strict=True)
        return {name: (total.T if is_conv1d(layer) else total) / count for (name, layer), total in named}


def _halve_gradient_sample(data: TaskSplit) -> tuple[list[int], list[int]]:
    """Every second example of each class, or along the scores, and the others."""
    labels, task = data.labels, data.task
    if task.is_multi_label:
        order = draw_order_by_hash(range(len(labels)), "halves", task.name)
        first, second = sorted(order[::2]), sorted(order[1::2])
        for rows in (first, second):
            if not rows or (name := find_label_without_contrast(task, [labels[i] for i in rows])) is not None:
                raise OsrmError(
                    f"{len(labels)} examples of '{task.name}' are too few for its gradient: half of them hold each or "
                    f"none of class '{name if rows else task.labels}'",
                    "take more --samples",
                )
        return first, second
    for index, name in enumerate(task.labels or ()):
        if labels.count(index) < 2:
            raise OsrmError(
                f"{len(labels)} examples of '{task.name}' hold {labels.count(index)} of class '{name}', its gradient "
                "needs two or more",
                "take more --samples",
            )
    if len(labels) < 2:
        raise OsrmError(f"there is one example of '{task.name}', its gradient needs two or more", "take more --samples")
    order = sorted(range(len(labels)), key=lambda i: labels[i])
    return sorted(order[::2]), sorted(order[1::2])
