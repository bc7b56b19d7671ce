"""Score many merges on one backbone: model, examples and heads are loaded once, and a merge takes one pass per task."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.functional import linear

from osrm_cli.calibration.head_map import calibrated_head, fit_head_map
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.linear_head import find_head_layer
from osrm_cli.progress import Advance
from osrm_cli.sweep.tasks import SweepTask
from osrm_cli.sweep.weights import SweptDeltaSource, SweptSingleDeltas, SweptWeights
from osrm_cli.tasks import metrics
from osrm_cli.tasks.validation_split import TEST, VALIDATION, ValidationSplit

ScoresBySplit = dict[str, dict[str, TaskScore]]  # by split, then by task


class SweepHead:
    """One task's head on the shared backbone, with its tokenized examples.

    Attributes:
        task: The task, its examples and its adapter.
        target: The single adapter's representations of the unlabelled examples, once they are computed.
    """

    target: torch.Tensor | None = None

    def __init__(self, task: SweepTask, backbone: Backbone) -> None:
        self.task, self.name, self.index = task, task.adapter.name, task.index
        self.head = backbone.add_head(task.adapter.head_tensors(), task.parts.task.num_labels, task.adapter.folder)
        self.encodings = backbone.tokenize(task.parts.examples, task.max_length)
        self.unlabelled = backbone.tokenize(task.unlabelled, task.max_length)
        self.last = find_head_layer(self.head.classifier)[0] if self.unlabelled else ""

    def logits(self, representations: torch.Tensor) -> torch.Tensor:
        """``(n, num_labels)`` of representations ``(n, d)``."""
        return _apply_sweep_head(representations, self.head.tensors, self.last)

    def calibrated_logits(self, representations: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
        """Logits of the head that is fitted to map the merged representations back to ``target``.

        Args:
            representations: Of the examples to score, ``(n, d)``.
            unlabelled: Of the unlabelled examples, ``(m, d)``.
        """
        if self.target is None:
            raise RuntimeError("score the single adapters first")
        ridge_map = fit_head_map(find_head_layer(self.head.classifier)[1], unlabelled, self.target)
        return _apply_sweep_head(representations, calibrated_head(self.head.tensors, self.last, ridge_map), self.last)


class SweepScorer:
    """One backbone in memory, on which the merges are scored one after the other.

    Args:
        plan: Supplies the layers and the adapters.
        tasks: The tasks to score.
        base_dir: Folder of the base model.
        device: Device of the computation.
        dtype: Precision of the model. Updates are always added in float32.
        batch_size: Maximum examples per batch.

    Attributes:
        examples: Number of examples on which one merge is run.
        warnings: None: what is wrong with the data shows when it is read.

    Raises:
        OsrmError: If an adapter or its head does not fit the base model.
    """

    def __init__(
        self,
        plan: MergePlan,
        tasks: Sequence[SweepTask],
        base_dir: Path,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        saved = plan.read_saved_modules()
        self._backbone = Backbone.load(base_dir, device)
        self._backbone.check_layers(plan.shapes)
        self._backbone.replace_values(saved.values, saved.rows)
        self._adapters, self._batch_size = plan.adapters, batch_size
        self._weights = SweptWeights(self._backbone.model, plan.layers, dtype)
        self._heads = [SweepHead(task, self._backbone) for task in tasks]
        self.examples = sum(len(head.encodings) + len(head.unlabelled) for head in self._heads)
        self.warnings: list[str] = []

    def score_single_adapters(self, advance: Advance) -> ScoresBySplit:
        """Score every task's own adapter, and keep the representations that are the targets of calibration."""
        results = {}
        for head in self._weights.each(self._heads, SweptSingleDeltas(self._adapters)):
            logits, representations = self._run_head(head, advance)
            if representations is not None:
                head.target = representations[len(head.encodings) :]
            results[head.name] = _score_sweep_splits(head.task.parts, logits)
        return group_sweep_scores(results)

    def score(self, deltas: SweptDeltaSource, advance: Advance) -> list[ScoresBySplit]:
        """Score one merge on every task: unchanged, and with calibrated heads if there are unlabelled examples.

        Call ``score_single_adapters`` first.
        """
        plain, calibrated = {}, {}
        for head in self._weights.each(self._heads, deltas):
            logits, representations = self._run_head(head, advance)
            plain[head.name] = _score_sweep_splits(head.task.parts, logits)
            if representations is not None:
                count = len(head.encodings)
                logits = head.calibrated_logits(representations[:count], representations[count:])
                calibrated[head.name] = _score_sweep_splits(head.task.parts, logits)
        return [group_sweep_scores(results) for results in (plain, calibrated) if results]

    def _run_head(self, head: SweepHead, advance: Advance) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A task's logits, and the representations of all its examples if heads are calibrated."""
        model, count = head.head.load(), len(head.encodings)
        if not head.unlabelled:
            return self._backbone.logits(model, head.encodings, self._batch_size, advance), None
        encodings = [*head.encodings, *head.unlabelled]
        representations = self._backbone.representations(model, encodings, self._batch_size, advance)
        return head.logits(representations[:count]), representations


def _apply_sweep_head(inputs: torch.Tensor, head: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    bias = head.get(f"{name}.bias")
    return linear(inputs, head[f"{name}.weight"].float(), None if bias is None else bias.float())


def _score_sweep_splits(parts: ValidationSplit, logits: torch.Tensor) -> dict[str, TaskScore]:
    """One task's score on each split."""
    predictions = metrics.predictions_from_logits(parts.task, logits.numpy())
    results = {}
    for part, rows in parts.indices.items():
        own = predictions[list(rows)]
        scores = metrics.compute_task_scores(parts.task, own, parts.labels_of(part))
        headline = metrics.primary_score(parts.task, scores)
        results[part] = TaskScore(scores, headline, examples=len(rows), predictions=tuple(own.tolist()))
    return results


def group_sweep_scores(results: Mapping[str, Mapping[str, TaskScore]]) -> ScoresBySplit:
    """Scores by part and task, from scores by task and part."""
    return {part: {task: by_part[part] for task, by_part in results.items()} for part in (VALIDATION, TEST)}
