"""Learn what makes a merged model like the single ones: its factors (``distill``), or a weight per task and layer.

The single models are teachers of themselves alone: each on its own task's texts, through its own head; of a task that
is answered with text, at the positions of a completion that it has written itself. Nothing is read but texts. Factors
may also be learned from adapters of other base models, see ``teachers``.

What is gained on so few texts holds only in part for others: the distance on held-out ones ends well above that on
those that are learned from. A single model can be asked of any text, so ``distill`` puts further ones together for
classifiers, from parts of those at hand, see ``mixed_texts``; they need not make sense. Compare
Representation Surgery (arXiv:2402.02705), which matches the pooled states by a module beside the model, and ProDistill
(arXiv:2502.12706), which matches the states layer by layer.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from osrm_cli import seeding
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.subspaces import orthonormal_rows
from osrm_cli.merging.foreign import ForeignAdapter
from osrm_cli.merging.from_data.adamerging import AdaMergingDeltas, Weights
from osrm_cli.merging.from_data.matching import (
    MatchedOutputs,
    TaskTargets,
    compute_matching_targets,
    matching_distance,
    mean_matching_distance,
    run_task_model,
)
from osrm_cli.merging.from_data.student_heads import StudentHead, fit_student_head
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import Fields, LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.output_hooks import OutputHook, low_rank_output_hook

WARM = 0.05  # share of the updates until the rate is reached
LOOKS = 4  # at the held-out texts, evenly spread over the steps
LEAST_GAIN = 1e-4  # in the sum of the tasks' distances

Factors = Mapping[str, LowRank]


class LearnedFactors(LayerData):
    """Factors of the merged update that were learned.

    Args:
        factors: By layer.
        record: The texts that were read, the distance before and after.
        heads: Of the tasks whose adapter is foreign, the heads that were learned beside.
    """

    def __init__(self, factors: Factors, record: Mapping[str, Any], heads: Mapping[str, StudentHead]) -> None:
        self._factors, self.record, self.heads = factors, record, heads

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``B`` ``(d_out, r)`` and ``A`` ``(r, d_in)``."""
        return {"factors": (self._factors[layer].B, self._factors[layer].A)}


def learn_factors(
    models: Sequence[TaskModel], plan: MergePlan, start: Factors, advance: Callable[[int], None]
) -> LearnedFactors:
    """Minimise the mean over tasks of ``matching.matching_distance`` over the factors of the merged update, by Adam.

    Heads of tasks whose adapter is foreign are learned beside, from a regression on what the teacher says.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names.
        plan: Its options say how many steps at most, the rate, and the seed of the batches.
        start: Where to begin, by layer; its ranks are kept, with room for foreign adapters, see
            ``widen_merged_factors``. Layers that it lacks get the largest of its ranks.
        advance: Called with the number of steps done.
    """
    device = models[0].device
    rank = max((delta.rank for delta in start.values()), default=0)
    wide = {layer: widen_merged_factors(plan, layer, start.get(layer), rank) for layer in plan.layers}
    pairs = {
        layer: LowRank(_trainable_merge_factor(delta.B, device), _trainable_merge_factor(delta.A, device))
        for layer, delta in wide.items()
    }
    hooks: dict[str, OutputHook] = {layer: low_rank_output_hook(pair) for layer, pair in pairs.items()}
    parameters = [factor for pair in pairs.values() for factor in (pair.B, pair.A)]
    heads = {model.name: model.head for model in models if isinstance(model.head, StudentHead)}
    parameters += [parameter for head in heads.values() for parameter in head.parameters]
    record = _minimise_matching_distances(models, plan, parameters, hooks, advance) | _describe_teachers(models)
    factors = {layer: LowRank(pair.B.detach(), pair.A.detach()) for layer, pair in pairs.items()}
    return LearnedFactors(factors, record, heads)


def widen_merged_factors(plan: MergePlan, layer: str, start: LowRank | None, rank: int) -> LowRank:
    """Factors to begin with, with further ones for what is to be learned beside: orthonormal rows of A, and B zero.

    Args:
        plan: Its ``rank`` is that of the result; without it, that of the start and each foreign adapter's are added up.
        layer: Full name.
        start: The merge of the adapters of this base model; ``None`` where none of them changes the layer.
        rank: What counts as that of the start where there is none.
    """
    shape = plan.shapes[layer]
    given = start or LowRank(torch.zeros(shape.d_out, 0), torch.zeros(0, shape.d_in))
    room = plan.options.rank or (given.rank if start else rank) + sum(each.rank for each in plan.foreign)
    count = max(min(room, shape.d_in, shape.d_out) - given.rank, 0)
    seed = plan.recipe.options["seed"]
    A = orthonormal_rows(seeding.gaussian(count, shape.d_in, seed, "room", layer)).to(given.A)  # noqa: N806
    return LowRank(torch.cat([given.B, given.B.new_zeros(shape.d_out, count)], 1), torch.cat([given.A, A]))


def _describe_teachers(models: Sequence[TaskModel]) -> dict[str, Any]:
    """The record of teachers on other base models: which, and what of them was compared."""
    teachers = {
        model.name: {"base": adapter.teacher_base, "compared": "logits" if model.teacher else "written text"}
        for model in models
        if isinstance(adapter := model.sample.adapter, ForeignAdapter)
    }
    return {"teachers": teachers} if teachers else {}


def learn_matching_weights(
    models: Sequence[TaskModel], plan: MergePlan, advance: Callable[[int], None]
) -> tuple[Weights, dict[str, Any]]:
    """Minimise the same over one coefficient for each task's every layer, as in AdaMerging, but not by entropy.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names.
        plan: Its lambda is where every coefficient starts; its options say how many steps at most, the rate, and the
            seed.
        advance: Called with the number of steps done.

    Returns:
        The weight ``c_tl w_tl`` by adapter and layer, and the record for ``osrm.json``.
    """
    mixture = AdaMergingDeltas(models, plan)
    record = _minimise_matching_distances(models, plan, [mixture.coefficients], mixture.changes, advance)
    return mixture.learned_weights(models, plan), record


def _trainable_merge_factor(factor: Tensor, device: torch.device) -> Tensor:
    return factor.to(device, torch.float32, copy=True).requires_grad_()


def _minimise_matching_distances(
    models: Sequence[TaskModel],
    plan: MergePlan,
    parameters: Sequence[Tensor],
    hooks: Mapping[str, OutputHook],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Change parameters in place to those that are best on the held-out texts; returns the record.

    Every step takes a batch of each task, in a random order, and changes the parameters after each. The rate rises in
    the first of these updates, and falls to zero as half a cosine. What is best is looked for ``LOOKS`` times.
    """
    steps, rate, seed = (plan.recipe.options[name] for name in ("steps", "lr", "seed"))
    targets = [compute_matching_targets(model, index, plan) for index, model in enumerate(models)]
    for each in targets:
        if isinstance(each.model.head, StudentHead):
            _fit_head_to_teacher(each.model.head, each, hooks)
    before = best = _held_out_matching_distances(targets, hooks)
    kept, done = [parameter.detach().clone() for parameter in parameters], 0
    adam, updates, total = torch.optim.Adam(parameters, lr=rate), 0, steps * len(targets)
    turns, draws = seeding.generator(seed, "turns"), [_draw_matching_batches(each, seed) for each in targets]
    for step in range(1, steps + 1):
        for index in torch.randperm(len(targets), generator=turns).tolist():
            falling = (1 + math.cos(math.pi * updates / total)) / 2
            updates += 1
            adam.param_groups[0]["lr"] = rate * min(1, updates / (WARM * total)) * falling
            adam.zero_grad()
            rows, wanted = next(draws[index])
            each = targets[index]
            loss = matching_distance(each, run_task_model(each.model, hooks, each.layers, rows), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        advance(1)
        if step % math.ceil(steps / LOOKS) and step < steps:
            continue
        found_distances = _held_out_matching_distances(targets, hooks)
        if sum(found_distances.values()) < sum(best.values()) - LEAST_GAIN:
            best, done = found_distances, step
            kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    mixed = {each.model.name: each.mixed for each in targets if each.mixed}
    distances = {name: {"before": before[name], "after": best[name]} for name in before}
    return {
        "examples": {model.name: model.sample.record for model in models},
        "distance": distances,
        "steps": done,
        **({"mixed_texts": mixed} if mixed else {}),
    }


def _draw_matching_batches(targets: TaskTargets, seed: int) -> Iterator[tuple[list[int], MatchedOutputs]]:
    """A task's batches without end: all of them in one random order after the other."""
    generator = seeding.generator(seed, "matching", targets.model.name)
    while True:
        for index in torch.randperm(len(targets.training), generator=generator).tolist():
            yield targets.training[index]


def _fit_head_to_teacher(head: StudentHead, targets: TaskTargets, hooks: Mapping[str, OutputHook]) -> None:
    with torch.no_grad():
        pooled = torch.cat([run_task_model(targets.model, hooks, {}, rows).pooled for rows, _ in targets.training])
    logits = torch.cat([wanted.logits for _, wanted in targets.training if wanted.logits is not None])
    fit_student_head(head, pooled, logits, targets.model.sample.data.task.regression)


def _held_out_matching_distances(targets: Sequence[TaskTargets], hooks: Mapping[str, OutputHook]) -> dict[str, float]:
    return {each.model.name: mean_matching_distance(each, hooks) for each in targets}
