"""How far a merged model is from the single models on texts without labels: the loss of the methods that learn it away.

Three distances for each task: of the representations, per token, at some layers; of the pooled representation, which
the head's last layer reads; and of the head's output, for classes the Kullback-Leibler divergence. Each counts in units
of what the best constant would have: 1 is a model that says the same of every text. So a task whose single model says
little, and whose divergence is therefore small whatever is done, counts as much as any other.

Of a task that is answered with text, all three are taken at the positions of the completion, where the next token is
predicted (of an encoder, at those of the prompt): the output layer reads what is pooled elsewhere, and the divergence
is that of the next token's distribution, in units of the base model's: 1 is a model that has learned nothing.

Of a teacher on another base model there is the last distance alone, which counts three times; where it has another
vocabulary, the loss of what it has written, in units of the base model's.

The units are those of the task's own texts; where mixed texts are learned from, they count in the same ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from osrm_cli.errors import OsrmError
from osrm_cli.merging.from_data.task_models import BATCH_SIZE, TaskModel
from osrm_cli.merging.mixed_texts import mix_texts
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.layer_inputs import find_shared_layer_inputs, watch_layer_inputs
from osrm_cli.models.linear_head import find_head_layer
from osrm_cli.models.output_hooks import (
    OutputHook,
    low_rank_output_hook,
    with_last_layer_bypassed,
    with_output_hooks,
    with_selected_positions,
)
from osrm_cli.models.text.generation import completion_positions
from osrm_cli.models.token_batches import group_by_length

HELD_OUT = 8  # every eighth text
LEAST_INFORMATION = 1e-3  # nats
STATES = 4  # layers whose inputs are compared
PARTS = 3  # distances that make up a task's
MOST_KEPT = 1 << 29  # bytes of a task's outputs on mixed texts
TEXT_BATCH_SIZE = 4  # completions have many positions each


@dataclass(frozen=True)
class MatchedOutputs:
    """What a model makes of a batch.

    Attributes:
        states: Inputs of some layers at the positions that count, ``(tokens, d_in)`` each.
        pooled: Inputs of the head's last layer, ``(n, d)``; of a text task one row for each position of a completion.
        logits: ``(n, num_labels)``; ``None`` where they are to be computed from ``pooled`` again, since a vocabulary is
            a hundred times as wide; of a teacher with another vocabulary its tokens, ``(n,)``.
    """

    states: tuple[Tensor, ...]
    pooled: Tensor
    logits: Tensor | None

    @property
    def count(self) -> int:
        """``n``."""
        return len(self.pooled if self.logits is None else self.logits)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(each.nbytes for each in (*self.states, self.pooled, self.logits) if each is not None)


Batches = Sequence[tuple[list[int], MatchedOutputs]]  # rows and what a model makes of them


@dataclass(frozen=True)
class PartlyKeptBatches(Sequence[tuple[list[int], MatchedOutputs]]):
    """Batches with a single model's outputs, some kept; of the others it is asked anew each time, to save memory.

    Attributes:
        kept: The first ones.
        rows: Rows of the others.
        ask: The single model's outputs on rows.
    """

    kept: Batches
    rows: Sequence[list[int]]
    ask: Callable[[list[int]], MatchedOutputs]

    def __len__(self) -> int:
        return len(self.kept) + len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if place < len(self.kept):
            return self.kept[place]
        rows = self.rows[place - len(self.kept)]  # beyond the last one an IndexError, which ends an iteration
        with torch.no_grad():
            return rows, self.ask(rows)


@dataclass(frozen=True)
class TaskTargets:
    """A single model's outputs on its texts, computed once.

    Attributes:
        model: The task's model.
        layers: Whose inputs ``states`` are, and whether they are those of an encoder beside a decoder.
        training: Batches to learn from: rows and outputs.
        held_out: Batches to choose by; those of ``training`` where there are too few texts.
        scales: Variance of each of ``states``, of ``pooled``, and of the scores, the information of the classes, or the
            base model's divergence. Of a teacher on another base model the last one alone.
        mixed: How many of the texts to learn from are mixed ones, whose rows come behind the sample's.
    """

    model: TaskModel
    layers: Mapping[str, bool]
    training: Batches
    held_out: Batches
    scales: tuple[float, ...]
    mixed: int = 0


def compute_matching_targets(model: TaskModel, index: int, plan: MergePlan) -> TaskTargets:
    """Run a task's single model on its texts.

    Args:
        model: The task's model.
        index: The adapter's place in the plan, whose weights scale its update.
        plan: The layers that its adapters change are compared: at most ``STATES`` distinct inputs, evenly spread, the
            last one among them. Its options may ask for mixed texts to learn from, of a classifier whose teacher has
            the same base model.

    Raises:
        OsrmError: If a language model's output is more than its output layer's.
    """
    texts = range(len(model.encodings))
    held_out = [text for text in texts if text % HELD_OUT == HELD_OUT - 1]
    training = [text for text in texts if text % HELD_OUT < HELD_OUT - 1]
    if model.is_foreign:
        return _compute_foreign_targets(model, training, held_out or training)
    deltas = {layer: delta for layer in plan.layers if (delta := model.delta(layer))}
    single = {layer: low_rank_output_hook(delta.scaled(plan.weight(index, layer))) for layer, delta in deltas.items()}
    layers, (model, mixed) = _choose_compared_layers(model, plan), _with_mixed_texts(model, training, plan)

    def ask(rows: list[int]) -> MatchedOutputs:
        return _target_outputs_to_keep(model, run_task_model(model, single, layers, rows))

    with torch.no_grad():
        learned_from, chosen_by = (
            [(rows, ask(rows)) for rows in _matching_batches(model, part)] for part in (training, held_out or training)
        )
        outputs = [each for _, each in learned_from]
        stacked = [torch.cat(states) for states in zip(*(each.states for each in outputs), strict=True)]
        stacked.append(torch.cat([each.pooled for each in outputs]))
        scales = [*map(_single_output_variance, stacked), _matching_output_scale(model, learned_from)]
        batches: Batches = PartlyKeptBatches(learned_from, _matching_batches(model, mixed), ask)
        if len(mixed) / len(training) * sum(each.bytes for each in outputs) <= MOST_KEPT:
            batches = list(batches)
    return TaskTargets(model, layers, batches, chosen_by, tuple(scale or 1.0 for scale in scales), len(mixed))


def _choose_compared_layers(model: TaskModel, plan: MergePlan) -> dict[str, bool]:
    """Layers whose inputs are compared, and whether they are those of an encoder beside a decoder."""
    shell = model.with_head_loaded()
    changed = [layer for layer in plan.layers if any(layer in adapter.layers for adapter in plan.adapters)]
    sources = find_shared_layer_inputs(shell, {name: shell.get_submodule(name) for name in changed}, model.batch([0]))
    distinct = sources.distinct
    count = min(STATES, len(distinct))
    chosen = [distinct[(place + 1) * len(distinct) // count - 1] for place in range(count)]
    return {name: name in sources.of_encoder for name in chosen}


def _with_mixed_texts(model: TaskModel, training: Sequence[int], plan: MergePlan) -> tuple[TaskModel, range]:
    """A classifier with mixed texts behind its own, and their places; other models as they are."""
    options, first = plan.recipe.options, len(model.encodings)
    copies = options.get("mixed_texts", 0)
    if not copies or not isinstance(model.backbone, Backbone):
        return model, range(0)
    examples = [model.sample.data.examples[text] for text in training]
    mixed = mix_texts(examples, copies, options["seed"], model.name)
    encodings = [*model.encodings, *model.backbone.tokenize(mixed, model.sample.max_length)]
    return replace(model, encodings=encodings), range(first, len(encodings))


def _compute_foreign_targets(model: TaskModel, training: Sequence[int], held_out: Sequence[int]) -> TaskTargets:
    """What a teacher on another base model says of the texts."""
    teacher, single = model.teacher, {}
    if teacher:
        deltas = {layer: delta for layer in teacher.sample.adapter.layers if (delta := teacher.delta(layer))}
        single = {layer: low_rank_output_hook(delta) for layer, delta in deltas.items()}

    def ask(rows: list[int]) -> MatchedOutputs:
        if teacher:
            return replace(_target_outputs_to_keep(teacher, run_task_model(teacher, single, {}, rows)), states=())
        shell, batch = model.with_head_loaded(), model.batch(rows)
        positions, _ = completion_positions(shell, batch)
        labels = batch["labels"]
        tokens = labels if shell.config.is_encoder_decoder else functional.pad(labels[:, 1:], (0, 1))
        return MatchedOutputs((), tokens.new_empty(0), tokens[positions])

    with torch.no_grad():
        learned_from, chosen_by = (
            tuple((rows, ask(rows)) for rows in _matching_batches(model, part)) for part in (training, held_out)
        )
        return TaskTargets(model, {}, learned_from, chosen_by, (_matching_output_scale(model, learned_from) or 1.0,))


def _target_outputs_to_keep(model: TaskModel, outputs: MatchedOutputs) -> MatchedOutputs:
    """What is kept of a single model's outputs: of text without logits."""
    if not model.is_text or outputs.logits is None:
        return outputs
    stored = replace(outputs, logits=None)
    if not torch.allclose(read_matched_logits(model, stored), outputs.logits, rtol=1e-3, atol=1e-3):
        shell = model.with_head_loaded()
        raise OsrmError(
            f"{model.name}: a {type(shell).__name__} does more than its output layer to predict the next token, or "
            "the adapter changes that layer",
            "use a method that does not compare predictions, such as sequential",
        )
    return stored


def read_matched_logits(model: TaskModel, outputs: MatchedOutputs) -> Tensor:
    """``outputs.logits``; where they are not kept, those of a language model's output layer."""
    if outputs.logits is not None:
        return outputs.logits
    logits: Tensor = model.output_layer(outputs.pooled).float()
    cap = getattr(model.with_head_loaded().config, "final_logit_softcapping", None)  # Gemma 2's
    return cap * torch.tanh(logits / cap) if cap else logits


def _expected_logits(model: TaskModel, wanted: MatchedOutputs) -> Tensor:
    """What is wanted of a model: its own logits or its teacher's, or the tokens of a teacher."""
    return read_matched_logits(model.teacher or model, wanted)


def _matching_output_scale(model: TaskModel, batches: Sequence[tuple[list[int], MatchedOutputs]]) -> float:
    """The unit of the output's distance."""
    if model.is_text:
        total = 0.0
        for rows, wanted in batches:
            base = run_task_model(model, {}, {}, rows)
            total += (
                float(prediction_divergence(read_matched_logits(model, base), _expected_logits(model, wanted)))
                * wanted.count
            )
        return max(total / sum(wanted.count for _, wanted in batches), LEAST_INFORMATION)
    logits = torch.cat([_expected_logits(model, wanted) for _, wanted in batches])
    return _single_output_variance(logits) if model.sample.data.task.regression else _prediction_information(logits)


def prediction_divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the predictions from those that are wanted, in nats, from logits.

    Where tokens are wanted, ``(n,)``, it is their loss. Vocabularies that were padded to other widths count as far as
    both go.
    """
    if wanted.ndim == 1:
        return functional.cross_entropy(found, wanted)
    width = min(found.shape[-1], wanted.shape[-1])
    found, wanted = found[..., :width], wanted[..., :width]
    return functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)


def _single_output_variance(values: Tensor) -> float:
    return float((values - values.mean(0)).square().mean())


def _prediction_information(logits: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the predictions from their mean, in nats, at least ``LEAST_INFORMATION``."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return max(float((p * (log_p - p.mean(0).log())).sum(-1).mean()), LEAST_INFORMATION)


def run_task_model(
    model: TaskModel, hooks: Mapping[str, OutputHook], layers: Mapping[str, bool], rows: Sequence[int]
) -> MatchedOutputs:
    """Run a task's model with changed outputs of layers.

    Args:
        model: The model.
        hooks: The changes, by layer.
        layers: Whose inputs to return, see ``TaskTargets``.
        rows: Texts, by their place in the sample.
    """
    shell, batch = model.with_head_loaded(), model.batch(rows)
    text = batch["attention_mask"].bool()
    states: dict[str, Tensor] = {}
    if model.is_text:
        counting, inputs = completion_positions(shell, batch)
        masks = {layer: text if reads_prompt else counting for layer, reads_prompt in layers.items()}
        with (
            with_output_hooks(shell, hooks),
            watch_layer_inputs(shell, masks, states),
            with_selected_positions(model.output_layer, counting) as selected,
        ):
            logits: Tensor = shell(**inputs).logits.float()
        return MatchedOutputs(tuple(states[layer] for layer in layers), selected[0], logits)
    _, head = find_head_layer(shell)
    with (
        with_output_hooks(shell, hooks),
        watch_layer_inputs(shell, dict.fromkeys(layers, text), states),
        with_last_layer_bypassed(head),
    ):
        pooled: Tensor = shell(**batch).logits.float()
    return MatchedOutputs(
        tuple(states[layer] for layer in layers), pooled, functional.linear(pooled, head.weight, head.bias)
    )


def matching_distance(targets: TaskTargets, outputs: MatchedOutputs, wanted: MatchedOutputs) -> Tensor:
    """How far outputs are from those of the single model, a scalar with its graph: the sum of the three distances."""
    if targets.model.is_foreign:
        return PARTS * _matching_output_distance(targets, outputs, wanted)
    *state_scales, pooled_scale, _ = targets.scales
    states = [
        functional.mse_loss(found, target) / scale
        for found, target, scale in zip(outputs.states, wanted.states, state_scales, strict=True)
    ]
    total = torch.stack(states).mean() + functional.mse_loss(outputs.pooled, wanted.pooled) / pooled_scale
    return total + _matching_output_distance(targets, outputs, wanted)


def _matching_output_distance(targets: TaskTargets, outputs: MatchedOutputs, wanted: MatchedOutputs) -> Tensor:
    found, expected = read_matched_logits(targets.model, outputs), _expected_logits(targets.model, wanted)
    if targets.model.sample.data.task.regression:
        return functional.mse_loss(found, expected) / targets.scales[-1]
    return prediction_divergence(found, expected) / targets.scales[-1]


def mean_matching_distance(targets: TaskTargets, hooks: Mapping[str, OutputHook]) -> float:
    """Mean distance over a task's held-out texts."""
    total = 0.0
    with torch.no_grad():
        for rows, wanted in targets.held_out:
            found = run_task_model(targets.model, hooks, targets.layers, rows)
            total += float(matching_distance(targets, found, wanted)) * wanted.count
    return total / sum(wanted.count for _, wanted in targets.held_out)


def _matching_batches(model: TaskModel, texts: Sequence[int]) -> list[list[int]]:
    lengths = [len(model.encodings[text]["input_ids"]) for text in texts]
    batches = group_by_length(lengths, TEXT_BATCH_SIZE if model.is_text else BATCH_SIZE)
    return [[texts[place] for place in batch] for batch in batches]
