"""Score each task of a folder and its single adapter: ``merged/`` -> ``scores.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.evaluation import scores
from osrm_cli.evaluation.merged_folder import MergedFolder, TaskClassifier
from osrm_cli.evaluation.model_card import add_scores
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.devices import dtype_name, pick_device, pick_dtype
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.tasks.loading import list_splits, load_split
from osrm_cli.tasks.metrics import compute_scores, predictions_from_logits, primary_score
from osrm_cli.tasks.task import TaskSplit


@dataclass(frozen=True)
class EvaluationResult:
    """Result of ``evaluate_folder``.

    Attributes:
        path: The output file; not written under ``dry_run``.
        tasks: Names of the tasks.
        scores: Each task's score; empty under ``dry_run``.
        summary: Scores and averages as ``scores.json`` has them; empty under ``dry_run``.
        notes: Remarks on the scores, such as single adapters that could not be scored.
        warnings: Warnings about the data.
    """

    path: Path
    tasks: Sequence[str]
    scores: dict[str, TaskScore] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def evaluate_folder(
    folder: Path | str = "merged",
    tasks: Sequence[str] = (),
    *,
    data: str | None = None,
    split: str = "dev",
    limit: int | None = None,
    predictions: bool = False,
    single: bool = True,
    model: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> EvaluationResult:
    """Score each task of a merged folder and its single adapter.

    Args:
        folder: A merged folder, or an adapter folder with a head.
        tasks: Tasks to score; all by default.
        data: ``hub``, ``mini`` or a folder; by default the data that each adapter was trained on.
        split: Split to score on.
        limit: Examples per task, the first ones; all by default.
        predictions: Write every prediction, and the labels.
        single: Score the single adapters too.
        model: The base model, if it has moved.
        revision: Its revision.
        max_length: Tokens per example; by default as in training.
        batch_size: Maximum examples per batch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        out: File to write; by default ``scores.json`` in the folder.
        overwrite: Replace the file if it exists.
        dry_run: Check everything and write nothing.
        progress: Shows progress bars.

    Raises:
        OsrmError: If the folder, the data or the base model is missing, damaged or does not fit.

    Example:
        >>> from osrm_cli import evaluate_folder
        >>> result = evaluate_folder("merged", limit=100)
        >>> result.scores["mini-mood"].headline
        84.0
    """
    folder = Path(folder)
    path = Path(out) if out else folder / scores.SCORES_NAME
    atomic.refuse_existing(path, overwrite)
    merged = MergedFolder.open(folder)
    adapters_and_method = merged.describe()
    classifiers = merged.choose_tasks(list(tasks))
    examples = {name: _load_sets(classifier, data, split, limit) for name, classifier in classifiers.items()}
    lengths = {
        name: max_length or resolve_max_length(classifier.max_length, examples[name][0].task)
        for name, classifier in classifiers.items()
    }
    base_dir, base = merged.resolve_model(model, revision, max(lengths.values()))
    result = EvaluationResult(path, list(classifiers))
    result.warnings.extend(dict.fromkeys(text for pair in examples.values() for part in pair for text in part.warnings))
    if dry_run:
        return result
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    scorer = _Scorer(Backbone.load(base_dir, torch_device, torch_dtype), dtype_name(torch_dtype), batch_size, progress)
    for name, classifier in classifiers.items():
        score = scorer.score(classifier, examples[name], lengths[name])
        if single:
            single_score = scorer.score_single_adapter(
                classifier, score, examples[name][0], lengths[name], result.notes
            )
            score = replace(score, single=single_score)
        result.scores[name] = score
    settings = {"split": split, "limit": limit, "max_length": lengths, "dtype": scorer.dtype}
    weights = sorted(folder.rglob("*.safetensors"))
    record = provenance.make_record("eval", settings, weights, base=base, **adapters_and_method)
    result.summary.update(scores.summarize_scores(result.scores))
    contents = result.summary | (scores.predictions_record(result.scores) if predictions else {})
    with atomic.write_file(path, overwrite) as stage:
        stage.write_text(provenance.to_json({**record, **contents}), encoding="utf-8")
    if out is None and (problem := add_scores(folder, result.scores, split)):
        result.notes.append(problem)
    if merged.form == "task-aware":
        result.notes.append("Each task was scored with its own mask: this is not one model.")
    return result


def _load_sets(classifier: TaskClassifier, data: str | None, split: str, limit: int | None) -> list[TaskSplit]:
    """The split's examples; two sets where the task has a matched and a mismatched one."""
    source = data or classifier.data_source or DEFAULT_DATA
    splits = list_splits(classifier.task, source)
    pair = [name for name in (f"{split}_matched", f"{split}_mismatched") if name in splits]
    return [load_split(classifier.task, source, name, limit) for name in pair or [split]]


@dataclass(frozen=True)
class _Scorer:
    """One backbone, on which the classifiers are scored one after the other.

    Attributes:
        backbone: The base model, or the merged model.
        dtype: Name of its precision.
        batch_size: Maximum examples per batch.
        progress: Shows progress bars.
    """

    backbone: Backbone
    dtype: str
    batch_size: int
    progress: Progress

    def score(self, classifier: TaskClassifier, sets: Sequence[TaskSplit], max_length: int) -> TaskScore:
        """Score one task on one set of examples, or two."""
        first_set, predictions = sets[0], []
        with self.backbone.attach(classifier, first_set.task.num_labels) as model:
            for data in sets:
                encodings = self.backbone.tokenize(data.examples, max_length)
                with self.progress(f"eval {data.task.name}", len(encodings), "examples") as advance:
                    logits = self.backbone.logits(model, encodings, self.batch_size, advance)
                predictions.append(predictions_from_logits(data.task, logits.numpy()))
        metrics_by_set = [
            compute_scores(first_set.task, answers, data.labels)
            for answers, data in zip(predictions, sets, strict=True)
        ]
        return TaskScore(
            {
                name: value
                for data, row in zip(sets, metrics_by_set, strict=True)
                for name, value in _metrics_by_name(data, row)
            },
            primary_score(first_set.task, metrics_by_set[0]),
            None,
            sum(len(data.examples) for data in sets),
            first_set.sha256,
            scores.round_answers(predictions[0].tolist()),
            tuple(first_set.labels),
        )

    def score_single_adapter(
        self, merged: TaskClassifier, score: TaskScore, data: TaskSplit, max_length: int, notes: list[str]
    ) -> float | None:
        """The single adapter's primary score: recorded for the same examples, or measured if possible."""
        if merged.is_single_adapter:
            return score.headline
        recorded = merged.single_adapter.get("dev") or {}
        required = {"sha256": data.sha256, "max_length": max_length, "dtype": self.dtype}
        is_same = all(recorded.get(name, value) == value for name, value in required.items()) and "sha256" in recorded
        if is_same and set(data.task.metrics) <= recorded["scores"].keys():
            return primary_score(data.task, recorded["scores"])
        path = Path(merged.single_adapter.get("path") or "")
        if not merged.single_adapter or not (path / CONFIG_NAME).is_file():
            notes.append(f"{merged.task}: the single adapter is not available, so its score is missing")
            return None
        if Adapter.open(path).sha256() != merged.single_adapter.get("sha256"):
            notes.append(f"{merged.task}: {path} has changed since it was merged, so its score is missing")
            return None
        single = MergedFolder.open(path)
        scorer = self
        if merged.form == "model":  # this backbone's weights are the merged ones
            base_dir, _ = single.resolve_base_model(None, None)
            backbone = Backbone.load(base_dir, self.backbone.device, self.backbone.model.dtype)
            scorer = replace(self, backbone=backbone)
        return scorer.score(next(iter(single.tasks.values())), [data], max_length).headline


def _metrics_by_name(data: TaskSplit, metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    suffix = "_mismatched" if data.split.endswith("_mismatched") else ""
    return ((name + suffix, value) for name, value in metrics.items())
