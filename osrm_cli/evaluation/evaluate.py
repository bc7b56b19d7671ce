"""Score each task of a folder, beside its single adapter: ``merged/`` -> ``scores.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.evaluation import scores
from osrm_cli.evaluation.merged_folder import MergedFolder, TaskClassifier
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.classifier import check_max_length
from osrm_cli.models.devices import dtype_name, pick_device, pick_dtype
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.tasks.loading import list_splits, load_split
from osrm_cli.tasks.metrics import compute_scores, predictions_from_logits, primary_score
from osrm_cli.tasks.task import TaskSplit


@dataclass(frozen=True)
class EvaluationResult:
    """What ``evaluate_folder`` found.

    Attributes:
        path: The file that was written, or would be.
        tasks: Names of the tasks.
        scores: Each task's score; empty under ``dry_run``.
        notes: What the reader of the scores should know.
    """

    path: Path
    tasks: Sequence[str]
    scores: dict[str, TaskScore] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
    """Score each task of a merged folder, beside its single adapter.

    Args:
        folder: A merged folder, or an adapter folder with a head.
        tasks: Tasks to score; all by default.
        data: ``hub``, ``mini`` or a folder; by default what each adapter was trained on.
        split: Split to score on.
        limit: Examples per task, the first ones; all by default.
        predictions: Keep every prediction, and the labels.
        single: Score the single adapters beside.
        model: The base model, where it lies elsewhere now.
        revision: Its revision.
        max_length: Tokens per example; by default as in training.
        batch_size: Examples in a batch, at most.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        out: File to write; by default ``scores.json`` in the folder.
        overwrite: Replace the file if it exists.
        dry_run: Check everything and write nothing.
        progress: Draws bars.

    Raises:
        OsrmError: If the folder, the data or the base model is missing, damaged or does not fit.

    Example:
        >>> from osrm_cli import evaluate_folder
        >>> result = evaluate_folder("merged", limit=100)
        >>> result.scores["sst2"].headline
        91.0
    """
    folder = Path(folder)
    path = Path(out) if out else folder / scores.NAME
    atomic.refuse_existing(path, overwrite)
    opened = MergedFolder.open(folder)
    chosen = opened.choose_tasks(list(tasks))
    sets = {name: _load_sets(classifier, data, split, limit) for name, classifier in chosen.items()}
    lengths = {
        name: max_length or resolve_max_length(classifier.max_length, sets[name][0].task)
        for name, classifier in chosen.items()
    }
    base_dir, base = opened.resolve_model(model, revision)
    check_max_length(base_dir, max(lengths.values()))
    result = EvaluationResult(path, list(chosen))
    if dry_run:
        return result
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    scorer = _Scorer(Backbone.load(base_dir, place, precision), dtype_name(precision), batch_size, progress)
    for name, classifier in chosen.items():
        score = scorer.score(classifier, sets[name], lengths[name])
        if single:
            alone = scorer.score_single_adapter(classifier, score, sets[name][0], lengths[name], result.notes)
            score = replace(score, single=alone)
        result.scores[name] = score
    settings = {"split": split, "limit": limit, "max_length": lengths, "dtype": scorer.dtype}
    weights = sorted(folder.rglob("*.safetensors"))
    record = provenance.make_record("eval", settings, weights, base=base, **opened.describe())
    facts = scores.summary(result.scores) | (scores.answers(result.scores) if predictions else {})
    with atomic.write_file(path, overwrite) as stage:
        stage.write_text(provenance.to_json({**record, **facts}), encoding="utf-8")
    if opened.form == "task-aware":
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
    """One backbone, on which one classifier after the other is scored.

    Attributes:
        backbone: The base model, or the merged one.
        dtype: Its precision by name.
        batch_size: Examples in a batch, at most.
        progress: Draws bars.
    """

    backbone: Backbone
    dtype: str
    batch_size: int
    progress: Progress

    def score(self, classifier: TaskClassifier, sets: Sequence[TaskSplit], max_length: int) -> TaskScore:
        """Score one task on one set of examples, or two."""
        first, predictions = sets[0], []
        with classifier.attach(self.backbone.model, first.task.num_labels) as model:
            for data in sets:
                encodings = self.backbone.tokenize(data.examples, max_length)
                with self.progress(f"eval {data.task.name}", len(encodings), "examples") as advance:
                    logits = self.backbone.logits(model, encodings, self.batch_size, advance)
                predictions.append(predictions_from_logits(data.task, logits.numpy()))
        rows = [compute_scores(first.task, given, data.labels) for given, data in zip(predictions, sets, strict=True)]
        return TaskScore(
            {name: value for data, row in zip(sets, rows, strict=True) for name, value in _named(data, row)},
            primary_score(first.task, rows[0]),
            None,
            sum(len(data.examples) for data in sets),
            first.sha256,
            scores.rounded(predictions[0].tolist()),
            tuple(first.labels),
        )

    def score_single_adapter(
        self, merged: TaskClassifier, score: TaskScore, data: TaskSplit, max_length: int, notes: list[str]
    ) -> float | None:
        """The single adapter's primary score: as recorded if on the same examples, else measured if it is at hand."""
        if merged.is_single_adapter:
            return score.headline
        recorded = merged.single_adapter.get("dev") or {}
        same = {"sha256": data.sha256, "max_length": max_length, "dtype": self.dtype}
        if all(recorded.get(name, value) == value for name, value in same.items()) and "sha256" in recorded:
            return primary_score(data.task, recorded["scores"])
        path = Path(merged.single_adapter.get("path") or "")
        if not merged.single_adapter or not (path / CONFIG_NAME).is_file():
            notes.append(f"{merged.task}: the single adapter is not at hand, so it has no score beside it")
            return None
        if Adapter.open(path).sha256() != merged.single_adapter.get("sha256"):
            notes.append(f"{merged.task}: {path} has changed since it was merged, so it has no score beside it")
            return None
        single = MergedFolder.open(path)
        scorer = self
        if merged.form == "model":  # this backbone's weights are the merged ones
            base_dir, _ = single.resolve_base_model(None, None)
            backbone = Backbone.load(base_dir, self.backbone.device, self.backbone.model.dtype)
            scorer = replace(self, backbone=backbone)
        return scorer.score(next(iter(single.tasks.values())), [data], max_length).headline


def _named(data: TaskSplit, metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    suffix = "_mismatched" if data.split.endswith("_mismatched") else ""
    return ((name + suffix, value) for name, value in metrics.items())
