"""Layer-wise weights by the Frank-Wolfe method on the tasks' own losses, for FW-Merging (arXiv:2503.12649)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from osrm_cli.merging.from_data.adamerging import AdaMergingDeltas, Weights
from osrm_cli.merging.from_data.fisher import example_loss
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.output_hooks import with_output_hooks
from osrm_cli.models.text.generation import completion_logits, token_losses
from osrm_cli.models.token_batches import IGNORED


def learn_simplex_weights(
    models: Sequence[TaskModel], plan: MergePlan, advance: Callable[[int], None]
) -> tuple[Weights, dict[str, Any]]:
    """Minimise the mean of the tasks' losses over the convex hull of the single models, a layer at a time.

    Each step takes the gradient over all examples. In every layer it picks the single model whose weights have the
    least inner product with it, and moves there by ``2 / (k + 2)`` of the way, ``k`` the steps done. What the base
    weights contribute is the same for all, so the inner product is the derivative by the model's coefficient: no
    gradient of a weight is formed. The first step goes all the way, so the base model, where it starts, leaves no
    trace.

    Args:
        models: The tasks' models, in the order of the adapters' names, on labelled examples.
        plan: Its lambda scales every single model's update; its options say how many steps.
        advance: Called with 1 after each step.

    Returns:
        The weight ``c_tl w_tl`` by adapter and layer, and the record for ``osrm.json``: examples, loss before and after
        by task, in nats.
    """
    mixture = AdaMergingDeltas(models, plan)
    with torch.no_grad():
        mixture.coefficients.zero_()
    layers = torch.arange(len(plan.layers), device=mixture.coefficients.device)
    before: dict[str, float] = {}
    for step in range(plan.recipe.options["steps"]):
        mixture.coefficients.grad = None
        losses = {model.name: _add_mixture_gradient(model, mixture, len(models)) for model in models}
        before = before or losses
        gradient = mixture.coefficients.grad
        if gradient is None:
            raise ValueError("no layer of the plan takes part in the models' outputs")
        rate = 2 / (step + 2)
        with torch.no_grad():
            mixture.coefficients.mul_(1 - rate)
            mixture.coefficients[gradient.argmin(0), layers] += rate * plan.options.scale
        advance(1)
    with torch.no_grad():
        after = {model.name: float(sum(_mixture_batch_losses(model, mixture))) for model in models}
    examples = {model.name: model.sample.record for model in models}
    loss = {name: {"before": value, "after": after[name]} for name, value in before.items()}
    return mixture.learned_weights(models, plan), {"examples": examples, "loss": loss}


def _add_mixture_gradient(model: TaskModel, mixture: AdaMergingDeltas, tasks: int) -> float:
    """Add the gradient of a task's share in the mean loss; returns the task's loss."""
    total = 0.0
    for loss in _mixture_batch_losses(model, mixture):  # one graph at a time
        (loss / tasks).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _mixture_batch_losses(model: TaskModel, mixture: AdaMergingDeltas) -> Iterator[Tensor]:
    """What each batch adds to the task's mean loss: ``-log p(label)``, of a completion per token, in nats."""
    shell, count = model.with_head_loaded(), len(model.encodings)
    for rows in model.batches():
        batch = model.batch(rows)
        with with_output_hooks(shell, mixture.changes):
            if model.is_text:
                logits, labels = completion_logits(shell, batch)
                losses = token_losses(logits, labels).sum(1) / (labels != IGNORED).sum(1)
            else:
                logits = shell(**batch).logits
                task = model.sample.data.task
                pairs = zip(logits, rows, strict=True)
                losses = torch.stack([example_loss(task, row, model.labels[index]) for row, index in pairs])
        yield losses.sum() / count
