"""Layer-wise weights of least entropy, for AdaMerging (arXiv:2310.02575)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from osrm_cli import seeding
from osrm_cli.merging.from_data.task_models import BATCH_SIZE, TaskModel
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.output_hooks import OutputHook, with_output_hooks

LEARNING_RATE = 1e-3  # the paper's

Weights = dict[str, dict[str, float]]


class LearnedWeights(LayerData):
    """Record of learned weights for ``osrm.json``; the method needs no further input than the weights."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record


class AdaMergingDeltas:
    """The sum ``sum_t c_tl w_tl dW_tl`` in every layer ``l``, as hooks: no dense weight is ever built.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names.
        plan: Names the layers; its weights ``w`` scale the updates, its lambda is where every coefficient starts.

    Attributes:
        coefficients: ``c``, ``(T, L)``: tasks in the order of ``models``, layers in the order of ``plan.layers``.
    """

    def __init__(self, models: Sequence[TaskModel], plan: MergePlan) -> None:
        device = models[0].device
        shape = (len(models), len(plan.layers))
        self.coefficients = torch.full(shape, plan.options.scale, device=device, requires_grad=True)
        self.changes = {
            layer: self._weighted_change(models, plan, layer, index) for index, layer in enumerate(plan.layers)
        }

    def learned_weights(self, models: Sequence[TaskModel], plan: MergePlan) -> Weights:
        """The weight ``c_tl w_tl`` by adapter and layer."""
        learned = self.coefficients.tolist()
        return {
            model.name: {
                layer: plan.weight(row, layer) * learned[row][column] for column, layer in enumerate(plan.layers)
            }
            for row, model in enumerate(models)
        }

    def _weighted_change(self, models: Sequence[TaskModel], plan: MergePlan, layer: str, column: int) -> OutputHook:
        deltas = [(row, update) for row, model in enumerate(models) if (update := model.delta(layer))]
        A = torch.cat([update.A for _, update in deltas])  # noqa: N806 - the papers' letters
        B = torch.cat([update.B * plan.weight(row, layer) for row, update in deltas], dim=1)  # noqa: N806
        owners = torch.tensor([row for row, update in deltas for _ in range(update.rank)], device=A.device)
        return lambda x, y: y + (x @ A.T * self.coefficients[owners, column]) @ B.T


def learn_weights_by_entropy(
    models: Sequence[TaskModel], plan: MergePlan, advance: Callable[[int], None]
) -> tuple[Weights, dict[str, Any]]:
    """Minimise the mean over tasks of the mean entropy of their predictions, each task with its own head, by Adam.

    Every step takes a batch of each task. No label is read, and the coefficients are not bounded.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names; classification only.
        plan: Its options say how many steps, and the seed of the batches.
        advance: Called with 1 after each step.

    Returns:
        The weight ``c_tl w_tl`` by adapter and layer, and the record for ``osrm.json``: examples, entropy before and
        after by task, in nats.
    """
    mixture = AdaMergingDeltas(models, plan)
    options = plan.recipe.options
    before = {model.name: mean_prediction_entropy(model, mixture) for model in models}
    adam = torch.optim.Adam([mixture.coefficients], lr=LEARNING_RATE)
    batches = [_draw_adamerging_batches(model, options["seed"]) for model in models]
    for _ in range(options["steps"]):
        adam.zero_grad()
        for model, indices in zip(models, batches, strict=True):  # one graph at a time
            loss = prediction_entropy(model, mixture, next(indices)).mean() / len(models)
            loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        advance(1)
    entropy = {
        model.name: {"before": before[model.name], "after": mean_prediction_entropy(model, mixture)} for model in models
    }
    examples = {model.name: model.sample.record for model in models}
    return mixture.learned_weights(models, plan), {"examples": examples, "entropy": entropy}


def prediction_entropy(model: TaskModel, mixture: AdaMergingDeltas, indices: Sequence[int]) -> Tensor:
    """Entropy of the predictions for some examples, ``(len(indices),)``, in nats, with its graph."""
    shell = model.with_head_loaded()
    with with_output_hooks(shell, mixture.changes):
        log_p = shell(**model.batch(indices)).logits.float().log_softmax(dim=-1)
    entropy: Tensor = -(log_p.exp() * log_p).sum(dim=-1)
    return entropy


def mean_prediction_entropy(model: TaskModel, mixture: AdaMergingDeltas) -> float:
    """Mean entropy over all of a task's examples, in nats."""
    with torch.no_grad():
        entropies = [prediction_entropy(model, mixture, indices).to(torch.float64).cpu() for indices in model.batches()]
    return float(torch.cat(entropies).mean())


def _draw_adamerging_batches(model: TaskModel, seed: int) -> Iterator[list[int]]:
    """Batches without end: one random order of the examples after the other."""
    generator = seeding.generator(seed, "adamerging", model.name)
    waiting: list[int] = []
    count = len(model.encodings)
    while True:
        while len(waiting) < min(BATCH_SIZE, count):
            waiting += torch.randperm(count, generator=generator).tolist()
        yield [waiting.pop(0) for _ in range(min(BATCH_SIZE, count))]
