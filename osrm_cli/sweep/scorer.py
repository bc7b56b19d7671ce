"""Score many merges on one backbone: model, text and heads are loaded once, and a merge costs one pass per task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.calibration.head_map import calibrated_head, fit_head_map
from osrm_cli.evaluation.scores import TaskScore, rounded
from osrm_cli.merging.from_data import task_models
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models import heads
from osrm_cli.models.backbone import compute_logits, with_head
from osrm_cli.models.batching import tokenize_examples
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.target_modules import is_conv1d
from osrm_cli.sweep.tasks import SweepTask
from osrm_cli.tasks import metrics
from osrm_cli.tasks.validation_split import TEST, VALIDATION, ValidationSplit

Advance = Callable[[int], None]
ScoresBySplit = dict[str, dict[str, TaskScore]]  # by part, then by task


class DeltaSource(Protocol):
    """What is added to the backbone's weights."""

    @property
    def by_task(self) -> bool:
        """Whether each task has an update of its own."""

    def delta(self, layer: str, index: int) -> torch.Tensor | None:
        """One layer's update ``(d_out, d_in)`` for the task of the adapter at ``index``; nothing if it has none."""


@dataclass(frozen=True)
class SingleAdapterDeltas:
    """Each task's own adapter, as it was trained."""

    adapters: Sequence[Adapter]
    by_task: bool = True

    def delta(self, layer: str, index: int) -> torch.Tensor | None:
        """The adapter's update, float32."""
        adapter = self.adapters[index]
        return adapter.delta(layer).dense() if layer in adapter.layers else None


@dataclass(frozen=True)
class _Pooled:
    """What the last layer of a head is fed with, ``(n, d)``.

    Attributes:
        scored: For the examples to score.
        unlabelled: For those that calibrate.
    """

    scored: torch.Tensor
    unlabelled: torch.Tensor


class TaskHead:
    """An entrant's head around the shared backbone, and its text as tokens.

    Attributes:
        target: The single adapter's representations of the unlabelled examples, once they are known.
    """

    target: torch.Tensor | None = None

    def __init__(self, entrant: SweepTask, model: PreTrainedModel, tokenizer: object) -> None:
        self.entrant, self.name = entrant, entrant.adapter.name
        self.head = entrant.adapter.head_tensors()
        labels = entrant.parts.task.num_labels
        with with_head(model, self.head, labels, entrant.adapter.folder) as shell:
            self._shell = cast("PreTrainedModel", shell)
        self.encodings = tokenize_examples(tokenizer, entrant.parts.examples, entrant.max_length)
        self.unlabelled = tokenize_examples(tokenizer, entrant.unlabelled, entrant.max_length)
        self.last = heads.find_head_layer(self._shell)[0] if self.unlabelled else ""

    def ready(self) -> PreTrainedModel:
        """The classifier with its head in it; what of a head lies in the backbone stays until the next call."""
        self._shell.load_state_dict(self.head, strict=False)
        return self._shell

    def calibrated(self, pooled: _Pooled, target: torch.Tensor) -> torch.Tensor:
        """Logits of the head that is fitted to lead the merged representations back to ``target``."""
        found = fit_head_map(heads.find_head_layer(self._shell)[1], pooled.unlabelled, target)
        return _logits(pooled.scored, calibrated_head(self.head, self.last, found), self.last)


class SweepScorer:
    """One backbone in memory, on which merges are scored one after the other.

    Args:
        plan: Names the layers and the adapters.
        entrants: The tasks to score.
        place: Folder of the base model.
        device: Where to compute.
        dtype: Precision of the model. Updates are added in float32 whatever it is.
        batch_size: Examples in a batch.

    Attributes:
        examples: Examples that one merge is run on.

    Raises:
        OsrmError: If an adapter or its head does not fit the base model.
    """

    def __init__(
        self,
        plan: MergePlan,
        entrants: Sequence[SweepTask],
        place: Path,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        self._tokenizer = load_tokenizer(place)
        model = load_classifier(place, 2, self._tokenizer, torch.float32, 0).model
        task_models.check_target_layers(model, plan)
        model.requires_grad_(False).train(False)
        self._adapters, self._device, self._batch_size = plan.adapters, device, batch_size
        self._layers = {name: model.get_submodule(name) for name in plan.layers}
        self._exact = {
            name: layer.get_parameter("weight").to(device, copy=True) for name, layer in self._layers.items()
        }
        for parameter in model.parameters():  # buffers such as rotary frequencies keep their precision
            parameter.data = parameter.data.to(dtype)
        whole: torch.nn.Module = model  # transformers' own method "to" is not typed
        whole.to(device)
        self._seats = [TaskHead(entrant, model, self._tokenizer) for entrant in entrants]
        self.examples = sum(len(seat.encodings) + len(seat.unlabelled) for seat in self._seats)

    def singles(self, advance: Advance) -> ScoresBySplit:
        """Score every task's own adapter, and keep the representations that calibration leads back to."""
        found = {}
        for seat, logits, pooled in self._runs(SingleAdapterDeltas(self._adapters), advance):
            seat.target = None if pooled is None else pooled.unlabelled
            found[seat.name] = _judged(seat.entrant.parts, logits)
        return _by_part(found)

    def score(self, change: DeltaSource, advance: Advance) -> list[ScoresBySplit]:
        """Score one merge on every task: as it is, and with calibrated heads where there are unlabelled examples.

        Call ``singles`` before.
        """
        plain, calibrated = {}, {}
        for seat, logits, pooled in self._runs(change, advance):
            plain[seat.name] = _judged(seat.entrant.parts, logits)
            if pooled is not None and seat.target is not None:
                calibrated[seat.name] = _judged(seat.entrant.parts, seat.calibrated(pooled, seat.target))
        return [_by_part(found) for found in (plain, calibrated) if found]

    def _runs(self, change: DeltaSource, advance: Advance) -> Iterator[tuple[TaskHead, torch.Tensor, _Pooled | None]]:
        """Each task's seat, its logits, and what its head is fed with where heads are calibrated."""
        for place, seat in enumerate(self._seats):
            if place == 0 or change.by_task:
                self._put(change, seat.entrant.index)
            yield seat, *self._run(seat, advance)

    @torch.no_grad()
    def _put(self, change: DeltaSource, index: int) -> None:
        """Add an update to the base model's weights, which are kept exactly: nothing adds up over many merges."""
        for name, layer in self._layers.items():
            delta, exact = change.delta(name, index), self._exact[name]
            if delta is not None:
                turned = delta.T if is_conv1d(layer) or isinstance(layer, torch.nn.Embedding) else delta
                exact = exact + turned.to(self._device)
            layer.get_parameter("weight").copy_(exact)

    def _run(self, seat: TaskHead, advance: Advance) -> tuple[torch.Tensor, _Pooled | None]:
        model, rest = seat.ready(), (self._tokenizer, self._device, self._batch_size, advance)
        if not seat.unlabelled:
            return compute_logits(model, seat.encodings, *rest), None
        rows = heads.compute_representations(model, [*seat.encodings, *seat.unlabelled], *rest)
        pooled = _Pooled(rows[: len(seat.encodings)], rows[len(seat.encodings) :])
        return _logits(pooled.scored, seat.head, seat.last), pooled


def _logits(pooled: torch.Tensor, head: Mapping[str, torch.Tensor], last: str) -> torch.Tensor:
    bias = head.get(f"{last}.bias")
    return linear(pooled, head[f"{last}.weight"].float(), None if bias is None else bias.float())


def _judged(parts: ValidationSplit, logits: torch.Tensor) -> dict[str, TaskScore]:
    """One task's result on each part."""
    answers = metrics.predictions_from_logits(parts.task, logits.numpy())
    found = {}
    for part, rows in parts.indices.items():
        scores = metrics.compute_scores(parts.task, answers[list(rows)], parts.labels_of(part))
        predictions = rounded(answers[list(rows)].tolist())
        headline = metrics.primary_score(parts.task, scores)
        found[part] = TaskScore(scores, headline, examples=len(predictions), predictions=predictions)
    return found


def _by_part(found: Mapping[str, Mapping[str, TaskScore]]) -> ScoresBySplit:
    return {part: {task: results[part] for task, results in found.items()} for part in (VALIDATION, TEST)}
