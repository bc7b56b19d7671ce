"""Score each task of a folder and its single adapter: ``merged/`` -> ``scores.json``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.errors import first_line
from osrm_cli.evaluation import scores
from osrm_cli.evaluation.harness import check_harness, run_harness
from osrm_cli.evaluation.merged_folder import ScoredFolder, ScoredTask
from osrm_cli.evaluation.model_card import card_with_scores
from osrm_cli.evaluation.scorers import FolderScorer
from osrm_cli.evaluation.scores import TaskScore, TaskScores
from osrm_cli.models.devices import dtype_name, pick_device, pick_dtype
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.storage.provenance import CARD_NAME
from osrm_cli.tasks.loading import choose_task_source, list_splits, load_split
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
        75.0
    """
    folder = Path(folder)
    path = Path(out) if out else folder / scores.SCORES_NAME
    atomic.refuse_existing(path, overwrite)
    merged = ScoredFolder.open(folder)
    adapters_and_method = merged.describe()
    tasks_on_disk = merged.choose_tasks(list(tasks))
    examples = {name: _load_splits_to_score(task, data, split, limit) for name, task in tasks_on_disk.items()}
    lengths = {
        name: max_length or resolve_max_length(task.max_length, examples[name][0].task)
        for name, task in tasks_on_disk.items()
    }
    base_dir, base_id = merged.resolve_model(model, revision)
    result = EvaluationResult(path, list(tasks_on_disk))
    result.warnings.extend(dict.fromkeys(text for pair in examples.values() for part in pair for text in part.warnings))
    torch_device = pick_device(device)
    precision = dtype_name(pick_dtype(dtype, torch_device))
    scorer = FolderScorer(
        merged,
        base_dir,
        torch_device,
        precision,
        batch_size,
        generate,
        skip_long,
        progress,
        result.notes,
        result.warnings,
    )
    scorer.check_max_length(max(lengths.values()))
    if harness:
        check_harness()
    if dry_run:
        return result
    for name, task in tasks_on_disk.items():
        first, length = examples[name][0], lengths[name]
        score = scorer.score(task, examples[name], length)
        if single:
            score = scorer.add_single_score(score, task, first, length)
        if base:
            score = scorer.add_base_score(score, first, length)
        result.scores[name] = score
    settings = {"split": split, "limit": limit, "max_length": lengths, "dtype": precision}
    settings |= {"skip_long": True} if skip_long else {}
    weights = sorted(folder.rglob("*.safetensors"))
    record = provenance.make_artifact_record("eval", settings, weights, base=base_id, **adapters_and_method)
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
    if out is None and (folder / CARD_NAME).is_file():
        result.notes.extend(_write_scores_to_card(folder / CARD_NAME, result.scores, split))
    if merged.form == "task-aware":
        result.notes.append("Each task was scored with its own mask: this is not one model.")
    return result


def _load_splits_to_score(task: ScoredTask, data: str | None, split: str, limit: int | None) -> list[TaskSplit]:
    """The split's examples; two sets where the task has a matched and a mismatched one."""
    source = choose_task_source(task.task, task.data_source, data, task.root) or DEFAULT_DATA
    splits = list_splits(task.task, source)
    pair = [name for name in (f"{split}_matched", f"{split}_mismatched") if name in splits]
    return [load_split(task.task, source, name, limit) for name in pair or [split]]


def _write_scores_to_card(path: Path, task_scores: TaskScores, split: str) -> list[str]:
    """Write the scores into the folder's model card; says why that cannot be done."""
    try:
        text = card_with_scores(path.read_text(encoding="utf-8"), path.parent.resolve().name, task_scores, split)
    except Exception as error:  # people edit cards, and the library raises whatever YAML makes of that
        return [f"{path}: the scores could not be added: {first_line(error)}"]
    with atomic.write_file(path, overwrite=True) as stage:
        stage.write_text(text, encoding="utf-8")
    return []
