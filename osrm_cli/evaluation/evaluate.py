"""Score each task of a folder and its single adapter: ``merged/`` -> ``scores.json``."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.evaluation import scores
from osrm_cli.evaluation.harness import check_harness, run_harness
from osrm_cli.evaluation.merged_folder import MergedFolder, MergedTask
from osrm_cli.evaluation.model_card import add_scores
from osrm_cli.evaluation.scorers import ClassScorer, Scorer, TextScorer
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.devices import dtype_name, pick_device, pick_dtype
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.tasks.loading import list_splits, load_split
from osrm_cli.tasks.metrics import primary_score
from osrm_cli.tasks.task import Task, TaskSplit


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
    base: bool = False,
    generate: bool = True,
    skip_long: bool = False,
    harness: Sequence[str] = (),
    harness_path: Path | str | None = None,
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
        base: Score the base model on text tasks too, to say what share of an improvement a merge keeps.
        generate: Write answers of text tasks; otherwise the loss alone is scored.
        skip_long: Leave out rows whose completion exceeds ``max_length``, instead of an error.
        harness: Tasks of lm-evaluation-harness to score the folder on as well.
        harness_path: Folder of further tasks in the harness's YAML.
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
    tasks_on_disk = merged.choose_tasks(list(tasks))
    examples = {name: _load_sets(task, data, split, limit) for name, task in tasks_on_disk.items()}
    lengths = {
        name: max_length or resolve_max_length(task.max_length, examples[name][0].task)
        for name, task in tasks_on_disk.items()
    }
    base_dir, base_id = merged.resolve_model(model, revision, max(lengths.values()))
    result = EvaluationResult(path, list(tasks_on_disk))
    result.warnings.extend(dict.fromkeys(text for pair in examples.values() for part in pair for text in part.warnings))
    if harness:
        check_harness()
    if dry_run:
        return result
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    precision = dtype_name(torch_dtype)
    scorers = _Scorers(torch_device, torch_dtype, batch_size, generate, skip_long, progress, result.warnings)
    for name, task in tasks_on_disk.items():
        first, length = examples[name][0], lengths[name]
        score = scorers.on(base_dir, first.task).score(task, examples[name], length)
        if single:
            score = _add_single_score(score, task, scorers, base_dir, first, length, precision, result.notes)
        if base and first.task.is_text:
            below = base_dir if merged.form != "model" else merged.resolve_base_model(None, None)[0]
            alone = scorers.on(below, first.task).score(None, [first], length)
            score = replace(score, base=alone.headline, base_loss=alone.metrics["loss"])
        result.scores[name] = score
    settings = {"split": split, "limit": limit, "max_length": lengths, "dtype": precision}
    weights = sorted(folder.rglob("*.safetensors"))
    record = provenance.make_record("eval", settings, weights, base=base_id, **adapters_and_method)
    result.summary.update(scores.summarize_scores(result.scores))
    if harness:
        with progress("harness", len(harness), "tasks") as advance:
            result.summary["harness"] = run_harness(
                harness,
                folder,
                base_dir,
                merged.form,
                own_tasks=Path(harness_path) if harness_path else None,
                device=str(torch_device),
                dtype=precision,
                batch_size=batch_size,
                limit=limit,
            )
            advance(len(harness))
    contents = result.summary | (scores.predictions_record(result.scores) if predictions else {})
    with atomic.write_file(path, overwrite) as stage:
        stage.write_text(provenance.to_json({**record, **contents}), encoding="utf-8")
    if out is None and (problem := add_scores(folder, result.scores, split)):
        result.notes.append(problem)
    if merged.form == "task-aware":
        result.notes.append("Each task was scored with its own mask: this is not one model.")
    return result


def _load_sets(task: MergedTask, data: str | None, split: str, limit: int | None) -> list[TaskSplit]:
    """The split's examples; two sets where the task has a matched and a mismatched one."""
    source = data or task.data_source or DEFAULT_DATA
    splits = list_splits(task.task, source)
    pair = [name for name in (f"{split}_matched", f"{split}_mismatched") if name in splits]
    return [load_split(task.task, source, name, limit) for name in pair or [split]]


@dataclass
class _Scorers:
    """Scorers by model and kind of task, each loaded when it is first needed.

    Attributes:
        device: Device of the computation.
        dtype: Precision of the models.
        batch_size: Maximum examples per batch.
        generate: Write answers of text tasks.
        skip_long: Leave out examples whose completion is too long.
        progress: Shows progress bars.
        warnings: Collects what the user should know about the examples.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    generate: bool
    skip_long: bool
    progress: Progress
    warnings: list[str]
    loaded: dict[tuple[Path, bool], Scorer] = field(default_factory=dict)

    def on(self, model: Path, task: Task) -> Scorer:
        """The scorer of a task's kind on a base model, or on a merged one."""
        key = model, task.is_text
        if key not in self.loaded:
            self.loaded[key] = self._load_text(model) if task.is_text else self._load_classes(model)
        return self.loaded[key]

    def _load_classes(self, model: Path) -> Scorer:
        return ClassScorer(Backbone.load(model, self.device, self.dtype), self.batch_size, self.progress)

    def _load_text(self, model: Path) -> Scorer:
        backbone = TextBackbone.load(model, self.device, self.dtype)
        return TextScorer(backbone, self.batch_size, self.progress, self.generate, self.skip_long, self.warnings)


def _add_single_score(
    score: TaskScore,
    merged: MergedTask,
    scorers: _Scorers,
    base_dir: Path,
    data: TaskSplit,
    max_length: int,
    dtype: str,
    notes: list[str],
) -> TaskScore:
    """A task's score with the single adapter's: recorded for the same examples, or measured if possible."""
    if merged.is_single_adapter:
        return replace(score, single=score.headline, single_loss=score.metrics.get("loss"))
    recorded = merged.single_adapter.get("dev") or {}
    required = {"sha256": data.sha256, "max_length": max_length, "dtype": dtype}
    is_same = all(recorded.get(name, value) == value for name, value in required.items()) and "sha256" in recorded
    if is_same and set(data.task.metrics) <= recorded["scores"].keys():  # training scores the loss of text alone
        return replace(score, single=primary_score(data.task, recorded["scores"]))
    path = Path(merged.single_adapter.get("path") or "")
    if not merged.single_adapter or not (path / CONFIG_NAME).is_file():
        notes.append(f"{merged.task}: the single adapter is not available, so its score is missing")
        return score
    if Adapter.open(path).sha256() != merged.single_adapter.get("sha256"):
        notes.append(f"{merged.task}: {path} has changed since it was merged, so its score is missing")
        return score
    single = MergedFolder.open(path)
    if merged.form == "model":  # that model's weights are the merged ones
        base_dir = single.resolve_base_model(None, None)[0]
    alone = scorers.on(base_dir, data.task).score(next(iter(single.tasks.values())), [data], max_length)
    return replace(score, single=alone.headline, single_loss=alone.metrics.get("loss"))
