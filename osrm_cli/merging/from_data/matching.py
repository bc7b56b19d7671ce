"""How far a merged model is from the single models on texts without labels: the loss of the methods that learn it away.

Three distances for each task: of the representations, per token, at some layers; of the pooled representation, which
the head's last layer reads; and of the head's output, for classes the Kullback-Leibler divergence. Each counts in units
of what the best constant would have: 1 is a model that says the same of every text. So a task whose single model says
little, and whose divergence is therefore small whatever is done, counts as much as any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from osrm_cli.merging.from_data.task_models import BATCH_SIZE, TaskModel
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.batching import group_by_length
from osrm_cli.models.heads import find_head_layer
from osrm_cli.models.layer_inputs import find_shared_inputs
from osrm_cli.models.output_hooks import OutputHook, low_rank_hook, with_output_hooks

HELD_OUT = 8  # every eighth text
LEAST_INFORMATION = 1e-3  # nats
STATES = 4  # layers whose inputs are compared


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch.

    Attributes:
        states: Inputs of some layers at the positions that are text, ``(tokens, d_in)`` each.
        pooled: Inputs of the head's last layer, ``(n, d)``.
        logits: ``(n, num_labels)``.
    """

    states: tuple[Tensor, ...]
    pooled: Tensor
    logits: Tensor


@dataclass(frozen=True)
class TaskTargets:
    """A single model's outputs on its texts, computed once.

    Attributes:
        model: The task's classifier.
        layers: Whose inputs ``states`` are.
        training: Batches to learn from: rows and outputs.
        held_out: Batches to stop by; those of ``training`` where there are too few texts.
        scales: Variance of each of ``states``, of ``pooled``, and of the scores, or the information of the classes.
    """

    model: TaskModel
    layers: tuple[str, ...]
    training: tuple[tuple[list[int], Outputs], ...]
    held_out: tuple[tuple[list[int], Outputs], ...]
    scales: tuple[float, ...]


def compute_targets(model: TaskModel, index: int, plan: MergePlan) -> TaskTargets:
    """Run a task's single model on its texts.

    Args:
        model: The task's classifier.
        index: The adapter's place in the plan, whose weights scale its update.
        plan: Its layers are compared: at most ``STATES`` distinct inputs, evenly spread, the last one among them.
    """
    deltas = {layer: delta for layer in plan.layers if (delta := model.delta(layer))}
    single = {layer: low_rank_hook(delta.scaled(plan.weight(index, layer))) for layer, delta in deltas.items()}
    shell = model.with_head_loaded()
    sources = find_shared_inputs(shell, {name: shell.get_submodule(name) for name in plan.layers}, model.batch([0]))
    distinct = sources.distinct
    count = min(STATES, len(distinct))
    layers = tuple(distinct[(place + 1) * len(distinct) // count - 1] for place in range(count))
    texts = range(len(model.encodings))
    held_out = [text for text in texts if text % HELD_OUT == HELD_OUT - 1]
    training = [text for text in texts if text % HELD_OUT < HELD_OUT - 1]
    with torch.no_grad():
        learned_from, stopped_by = (
            tuple((rows, run_model(model, single, layers, rows)) for rows in _batches(model, part))
            for part in (training, held_out or training)
        )
    outputs = [each for _, each in learned_from]
    stacked = [torch.cat(states) for states in zip(*(each.states for each in outputs), strict=True)]
    stacked.append(torch.cat([each.pooled for each in outputs]))
    scales = [_variance(values) for values in stacked]
    logits = torch.cat([each.logits for each in outputs])
    scales.append(_variance(logits) if model.sample.data.task.regression else _information(logits))
    return TaskTargets(model, layers, learned_from, stopped_by, tuple(scale or 1.0 for scale in scales))


def _variance(values: Tensor) -> float:
    return float((values - values.mean(0)).square().mean())


def _information(logits: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the predictions from their mean, in nats, at least ``LEAST_INFORMATION``."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return max(float((p * (log_p - p.mean(0).log())).sum(-1).mean()), LEAST_INFORMATION)


def run_model(model: TaskModel, hooks: Mapping[str, OutputHook], layers: Sequence[str], rows: Sequence[int]) -> Outputs:
    """Run a task's classifier with changed outputs of layers.

    Args:
        model: The classifier.
        hooks: The changes, by layer.
        layers: Whose inputs to return.
        rows: Texts, by their place in the sample.
    """
    shell, batch = model.with_head_loaded(), model.batch(rows)
    _, head = find_head_layer(shell)
    mask = batch["attention_mask"].bool()
    states: dict[str, Tensor] = {}
    with with_output_hooks(shell, hooks), _watching(shell, layers, mask, states), _bypassed(head):
        pooled: Tensor = shell(**batch).logits.float()
    return Outputs(tuple(states[layer] for layer in layers), pooled, functional.linear(pooled, head.weight, head.bias))


def distance(targets: TaskTargets, outputs: Outputs, wanted: Outputs) -> Tensor:
    """How far outputs are from those of the single model, a scalar with its graph: the sum of the three distances."""
    *state_scales, pooled_scale, logit_scale = targets.scales
    states = [
        functional.mse_loss(found, target) / scale
        for found, target, scale in zip(outputs.states, wanted.states, state_scales, strict=True)
    ]
    total = torch.stack(states).mean() + functional.mse_loss(outputs.pooled, wanted.pooled) / pooled_scale
    if targets.model.sample.data.task.regression:
        return total + functional.mse_loss(outputs.logits, wanted.logits) / logit_scale
    found, expected = outputs.logits.log_softmax(-1), wanted.logits.log_softmax(-1)
    return total + functional.kl_div(found, expected, reduction="batchmean", log_target=True) / logit_scale


def mean_distance(targets: TaskTargets, hooks: Mapping[str, OutputHook]) -> float:
    """Mean distance over a task's held-out texts."""
    total = 0.0
    with torch.no_grad():
        for rows, wanted in targets.held_out:
            found = run_model(targets.model, hooks, targets.layers, rows)
            total += float(distance(targets, found, wanted)) * len(rows)
    return total / sum(len(rows) for rows, _ in targets.held_out)


def _batches(model: TaskModel, texts: Sequence[int]) -> list[list[int]]:
    lengths = [len(model.encodings[text]["input_ids"]) for text in texts]
    return [[texts[place] for place in batch] for batch in group_by_length(lengths, BATCH_SIZE)]


@contextmanager
def _watching(shell: torch.nn.Module, layers: Sequence[str], mask: Tensor, states: dict[str, Tensor]) -> Iterator[None]:
    """Note the inputs of layers: at the positions that are text, or whole where they have other positions."""

    def note(name: str, x: Tensor) -> None:
        states[name] = x[mask] if x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])

    handles = [
        shell.get_submodule(name).register_forward_pre_hook(lambda _module, args, name=name: note(name, args[0]))
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _bypassed(head: torch.nn.Linear) -> Iterator[None]:
    """With its last layer bypassed, the model itself pools that layer's inputs in place of the logits."""
    handle = head.register_forward_hook(lambda _module, args, _output: args[0])
    try:
        yield
    finally:
        handle.remove()
