"""Score one task's model on its examples: classes and scores by a head, text by its loss and by what is written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.evaluation.answers import example_losses, make_text_score, score_answers
from osrm_cli.evaluation.merged_folder import ScoredFolder, ScoredTask
from osrm_cli.evaluation.scores import TaskScore, TextAnswers
from osrm_cli.models.backbone import Backbone, check_max_length
from osrm_cli.models.base_model import resolve_common_base_model
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.completions import CompletionTokenizer, check_chat_template
from osrm_cli.models.token_batches import Encoding
from osrm_cli.progress import Advance, Progress
from osrm_cli.tasks.metrics import compute_task_scores, predictions_from_logits, primary_score
from osrm_cli.tasks.task import Task, TaskSplit, TextExample
from osrm_cli.tasks.text.metrics import LIKELIHOOD, loss_scores

_SAMPLES = 3  # answers that are shown of each task


class Scorer(Protocol):
    """Scores tasks of one kind on one base model."""

    def score(
        self, task: ScoredTask | None, sets: Sequence[TaskSplit], max_length: int, progress: Progress
    ) -> TaskScore:
        """Score a task's model, or the base model alone, on one set of examples or two."""


@dataclass(frozen=True)
class FolderScorer:
    """The scorers of a folder's tasks: one for each model and kind of task, loaded when it is first needed.

    Attributes:
        merged: The folder.
        base_dir: The model that its tasks are attached to.
        device: Device of the computation.
        dtype: Precision of the models, such as ``float32``.
        batch_size: Maximum examples per batch.
        generate: Write answers of text tasks.
        skip_long: Leave out examples whose completion is too long.
        progress: Shows progress bars.
        notes: Collects single adapters that cannot be scored.
        warnings: Collects what the user should know about the examples.
    """

    merged: ScoredFolder
    base_dir: Path
    device: torch.device
    dtype: str
    batch_size: int
    generate: bool
    skip_long: bool
    progress: Progress
    notes: list[str]
    warnings: list[str]
    _loaded: dict[tuple[Path, bool], Scorer] = field(default_factory=dict)

    def check_max_length(self, length: int) -> None:
        """Check that the model has a position for each of ``length`` tokens.

        Raises:
            OsrmError: If it has fewer.
        """
        check_max_length(self.base_dir, length)

    def score(self, task: ScoredTask, sets: Sequence[TaskSplit], max_length: int) -> TaskScore:
        """Score one of the folder's tasks on one set of examples or two."""
        return self._score_model(
            "single" if task.is_single_adapter else "merged", self.base_dir, task, sets, max_length
        )

    def add_single_score(self, score: TaskScore, task: ScoredTask, data: TaskSplit, max_length: int) -> TaskScore:
        """A task's score with the single adapter's: recorded for the same examples, or measured if possible."""
        if task.is_single_adapter:
            return replace(score, single=score.headline, single_loss=score.metrics.get("loss"))
        recorded = task.single_adapter.get("dev") or {}
        required = {"sha256": data.sha256, "max_length": max_length, "dtype": self.dtype}
        is_same = all(recorded.get(name, value) == value for name, value in required.items()) and "sha256" in recorded
        if is_same and set(data.task.metrics) <= recorded["scores"].keys():  # training scores the loss of text alone
            return replace(score, single=primary_score(data.task, recorded["scores"]))
        adapter = self.merged.single_adapters.get(task.task)
        if not isinstance(adapter, Adapter):
            problem = adapter or f"the adapter that '{task.task}' was merged from is not recorded"
            self.notes.append(f"{problem}; the single score is missing")
            return score
        base_dir, is_teacher = self.base_dir, task.task in self.merged.teachers
        if self.merged.form == "model" or is_teacher:  # the model's weights are the merged ones, or of another model
            base_dir, _ = resolve_common_base_model([adapter])
        single = ScoredTask(adapter.name, "adapter", adapter.folder, adapter.folder, adapter.record, adapter)
        alone = self._score_model("single", base_dir, single, [data], max_length, is_teacher)
        return replace(score, single=alone.headline, single_loss=alone.metrics.get("loss"))

    def add_base_score(self, score: TaskScore, data: TaskSplit, max_length: int) -> TaskScore:
        """A text task's score with the base model's; other tasks have none."""
        if not data.task.is_text:
            return score
        base_dir = self.base_dir if self.merged.form != "model" else self.merged.resolve_base_model(None, None)[0]
        alone = self._score_model("base", base_dir, None, [data], max_length)
        return replace(score, base=alone.headline, base_loss=alone.metrics["loss"])

    def _score_model(
        self,
        name: str,
        model: Path,
        task: ScoredTask | None,
        sets: Sequence[TaskSplit],
        max_length: int,
        is_teacher: bool = False,
    ) -> TaskScore:
        """Score a task's model, or the base model alone; the bars say by ``name`` which."""

        def progress(what: str, total: int, unit: str) -> AbstractContextManager[Advance]:
            return self.progress(f"{what}, {name}", total, unit)

        return self._make_scorer(model, sets[0].task, is_teacher).score(task, sets, max_length, progress)

    def _make_scorer(self, model: Path, task: Task, is_teacher: bool) -> Scorer:
        """The scorer of a task's kind on a model, which for a teacher has its own tokenizer."""
        key = model, task.is_text
        if key not in self._loaded:
            beside = None if is_teacher else self.merged.path
            self._loaded[key] = self._load_text(model, beside) if task.is_text else self._load_classes(model)
        return self._loaded[key]

    def _load_classes(self, model: Path) -> Scorer:
        backbone = Backbone.load(model, self.device, getattr(torch, self.dtype))
        return ClassScorer(backbone, self.batch_size)

    def _load_text(self, model: Path, beside: Path | None) -> Scorer:
        backbone = TextBackbone.load(model, self.device, getattr(torch, self.dtype), beside)
        return TextScorer(backbone, self.batch_size, self.generate, self.skip_long, self.warnings)


@dataclass(frozen=True)
class ClassScorer:
    """One backbone, to which classifiers are attached one after the other.

    Attributes:
        backbone: The base model, or the merged model.
        batch_size: Maximum examples per batch.
    """

    backbone: Backbone
    batch_size: int

    def score(
        self, task: ScoredTask | None, sets: Sequence[TaskSplit], max_length: int, progress: Progress
    ) -> TaskScore:
        """Score one task on one set of examples, or two.

        Raises:
            OsrmError: If it has no head, or one that does not fit.
        """
        first_set, predictions = sets[0], []
        if task is None:
            raise ValueError("a base model has no head to score")
        with self.backbone.attach(task, first_set.task.num_labels) as model:
            for data in sets:
                encodings = self.backbone.tokenize(data.examples, max_length)
                with progress(f"eval {data.task.name}", len(encodings), "examples") as advance:
                    logits = self.backbone.logits(model, encodings, self.batch_size, advance)
                predictions.append(predictions_from_logits(data.task, logits.numpy()))
        metrics_by_set = [
            compute_task_scores(first_set.task, answers, data.labels)
            for answers, data in zip(predictions, sets, strict=True)
        ]
        return TaskScore(
            {
                name: value
                for data, row in zip(sets, metrics_by_set, strict=True)
                for name, value in _scored_metrics_by_name(data, row)
            },
            primary_score(first_set.task, metrics_by_set[0]),
            None,
            sum(len(data.examples) for data in sets),
            first_set.sha256,
            tuple(predictions[0].tolist()),
            tuple(first_set.labels),
        )


def _scored_metrics_by_name(data: TaskSplit, metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    suffix = "_mismatched" if data.split.endswith("_mismatched") else ""
    return ((name + suffix, value) for name, value in metrics.items())


@dataclass(frozen=True)
class TextScorer:
    """One language model, to which updates are added one after the other.

    Attributes:
        backbone: The base model, or the merged model.
        batch_size: Maximum examples per batch.
        generate: Write answers; otherwise the loss alone is scored, and the likelihood is the primary score.
        skip_long: Leave out examples whose completion is too long.
        warnings: Collects what the user should know about the examples.
    """

    backbone: TextBackbone
    batch_size: int
    generate: bool
    skip_long: bool
    warnings: list[str]

    def score(
        self, task: ScoredTask | None, sets: Sequence[TaskSplit], max_length: int, progress: Progress
    ) -> TaskScore:
        """Score one task.

        Raises:
            OsrmError: If an example cannot be used, or the adapter saw another template in training.
        """
        (data,) = sets
        if task:
            check_chat_template(task.template, self.backbone.tokenizer, task.task)
        completions = self.backbone.completions(max_length, self.skip_long)
        examples, encodings = completions.encode(data.text_examples)
        self.warnings.extend(text for text in completions.warnings if text not in self.warnings)
        if task is None:
            found = self._score_model(self.backbone.model, data, examples, encodings, completions, progress)
        else:
            with self.backbone.attach(task) as model:
                found = self._score_model(model, data, examples, encodings, completions, progress)
        self._warn_of_empty_answers(task, data.task.name, found)
        return found

    def _warn_of_empty_answers(self, model: ScoredTask | None, task: str, found: TaskScore) -> None:
        """An end token that is always the likeliest first one costs little loss, and every answer."""
        answers = found.text.answers if found.text else ()
        empty = sum(not answer.strip() for answer in answers)
        if empty > len(answers) / 2:
            whose = "base model" if model is None else "single adapter" if model.is_single_adapter else "merged model"
            self.warnings.append(f"{task}: {empty} of {len(answers)} answers of the {whose} are empty: it ends at once")

    def _score_model(
        self,
        model: torch.nn.Module,
        data: TaskSplit,
        examples: Sequence[TextExample],
        encodings: Sequence[Encoding],
        completions: CompletionTokenizer,
        progress: Progress,
    ) -> TaskScore:
        task = data.task
        with progress(f"loss {task.name}", len(encodings), "examples") as advance:
            losses = self.backbone.losses(model, encodings, self.batch_size, advance)
        metrics, answers = loss_scores(losses.mean()), list[str]()
        per_example = example_losses(losses, range(len(examples)))
        if not self.generate:
            task = replace(task, metrics=(LIKELIHOOD,))
        else:
            written, answers = score_answers(
                self.backbone, model, task, examples, encodings, completions, self.batch_size, progress
            )
            metrics |= written.metrics
            per_example |= written.per_example
        return replace(
            make_text_score(task, metrics, per_example, len(examples)),
            sha256=data.sha256,
            text=TextAnswers(
                tuple(answers),
                tuple(example.reference for example in examples) if answers else (),
                tuple(example.texts[0] for example in examples[:_SAMPLES]) if answers else (),
                tuple(float(f"{value:.9g}") for value in losses.nll / losses.tokens),
            ),
        )
