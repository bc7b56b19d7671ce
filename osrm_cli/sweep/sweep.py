"""Score merges over a grid: adapters -> ``sweep/sweep.json``, ``sweep/curve.png``."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from osrm_cli.calibration.calibrate import DEFAULT_SAMPLES
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.scores import ScoredMerge, average
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.models.backbone import check_max_length
from osrm_cli.models.base_model import resolve_common_base_model
from osrm_cli.models.devices import dtype_name, pick_device, pick_dtype
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.storage.records import BaseModelId
from osrm_cli.sweep.grid import MergeFamily, Value, expand_grid
from osrm_cli.sweep.lambda_plot import render_lambda_plot
from osrm_cli.sweep.merges import SweepMerges
from osrm_cli.sweep.results import CURVE_NAME, SWEEP_NAME, SweepResult
from osrm_cli.sweep.scorer import SweepScorer
from osrm_cli.sweep.tasks import SweepDataSpec, SweepTask
from osrm_cli.sweep.text_scorer import TextSweepScorer
from osrm_cli.sweep.weights import SweptDeltaSource
from osrm_cli.tasks.validation_split import TEST, VALIDATION

Writers = Literal["best", "all"] | None  # points that write answers


@dataclass(frozen=True)
class SweepReport:
    """Result of ``run_sweep``.

    Attributes:
        path: The output folder; not written under ``dry_run``.
        tasks: Names of the tasks.
        points: Number of merges.
        notes: Remarks on inputs that no method uses.
        result: Every point's scores; ``None`` under ``dry_run``.
        warnings: Warnings about the data.
    """

    path: Path
    tasks: Sequence[str]
    points: int
    notes: Sequence[str]
    result: SweepResult | None = None
    warnings: Sequence[str] = ()


def run_sweep(
    adapters: Sequence[Path | str],
    methods: Sequence[str] = ("task-arith",),
    grid: Mapping[str, Sequence[Value]] | None = None,
    tasks: Sequence[str] = (),
    *,
    calibrate: bool = False,
    samples: int | None = None,
    features: Path | str | None = None,
    data: str | None = None,
    split: str = "dev",
    validation_split: str | None = None,
    limit: int | None = None,
    predictions: bool = False,
    generate: bool = False,
    generate_all: bool = False,
    form: str = "adapter",
    seed: int = 0,
    model: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    skip_long: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | str = "sweep",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> SweepReport:
    """Score merges over a grid; one half of the examples selects, the other reports.

    Args:
        adapters: Adapter folders or hub ids with heads.
        methods: Names of merging methods.
        grid: Values by option of ``osrm merge``, such as ``{"lambda": [0.3, 0.5]}``; a method uses those that it has.
        tasks: Tasks to score; every adapter's by default.
        calibrate: Score every merge with calibrated heads too.
        samples: Training examples read per task; by default 128 to calibrate, 100 for a method.
        features: Folder of features files; ``features`` by default.
        data: ``hub``, ``mini`` or a folder; by default the data that each adapter was trained on.
        split: Split to score on.
        validation_split: Split that selects; by default a random half of ``split``.
        limit: Examples per task and split, the first ones; all by default.
        predictions: Write predictions of the single adapters and the best points.
        generate: Let the best points write answers to text tasks; all points are scored by their loss.
        generate_all: Let every point write answers, and select by the tasks' own metrics.
        form: Score the merge as an ``adapter`` or as a ``model``.
        seed: Seed of the halves, of the draws of examples, and of random methods.
        model: The base model, if it has moved.
        revision: Its revision.
        max_length: Tokens per example; by default as in training.
        skip_long: Leave out rows of text tasks whose completion exceeds ``max_length``, instead of an error.
        batch_size: Maximum examples per batch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        out: Folder to write.
        overwrite: Replace the folder if it exists.
        dry_run: Check everything and write nothing.
        progress: Shows progress bars.

    Raises:
        OsrmError: If adapters, data, methods or options are missing or do not fit together.

    Example:
        >>> from osrm_cli import run_sweep
        >>> adapters = ["adapters/mini-inference", "adapters/mini-mood"]
        >>> run_sweep(adapters, ["ties"], {"lambda": [0.3, 0.5, 1.0]}, predictions=True).result.best()
        [2]
    """
    path, grid = Path(out), grid or {}
    atomic.refuse_existing(path, overwrite)
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    shared_options: dict[str, Sequence[Value]] = {"seed": [seed]}
    if samples:
        shared_options["samples"] = [samples]
    entries = tuple(RecipeEntry(str(adapter)) for adapter in adapters)
    recipe = MergeRecipe("", entries, {}, str(features) if features else None, form, data=data)
    families = expand_grid(recipe, list(dict.fromkeys(methods)), grid, shared_options)
    notes = _note_unused_sweep_inputs({"features": features, "samples": samples}, families, calibrate)
    opened_adapters = families[0].plan.adapters
    base_dir, base = resolve_common_base_model(opened_adapters, model, revision)
    unlabelled = (samples or DEFAULT_SAMPLES) if calibrate else 0
    spec = SweepDataSpec(data, split, validation_split, limit, max_length, unlabelled, seed)
    sweep_tasks = spec.load_tasks(opened_adapters, tasks)
    is_text = _check_sweep_task_kind(sweep_tasks, calibrate, generate or generate_all)
    check_max_length(base_dir, max(task.max_length for task in sweep_tasks))
    merges = SweepMerges(families, base_dir, torch_device)
    names, points = [task.adapter.name for task in sweep_tasks], sum(len(family.lambdas) for family in families)
    warnings = [warning for task in sweep_tasks for warning in task.parts.warnings]
    if dry_run:
        return SweepReport(path, names, points, notes, warnings=warnings)
    with atomic.write_folder(path, overwrite) as stage, tempfile.TemporaryDirectory(dir=stage.parent) as scratch:
        inputs = families[0].plan, sweep_tasks, base_dir, torch_device, torch_dtype, batch_size
        scorer = TextSweepScorer(*inputs, skip_long) if is_text else SweepScorer(*inputs)
        warnings += [warning for warning in scorer.warnings if warning not in warnings]
        writers: Writers = "all" if generate_all else "best" if generate else None
        result = _score_sweep_families(scorer, merges, families, writers, Path(scratch), progress)
        settings = {
            "methods": list(dict.fromkeys(family.plan.method.name for family in families)),
            "grid": {**shared_options, **grid},
            "as": form,
            "split": split,
            "validation_split": validation_split,
            "limit": limit,
            **({"skip_long": True} if skip_long else {}),
            "seed": seed,
            "calibrate": unlabelled,
            "dtype": dtype_name(torch_dtype),
            **({"generate": writers} if is_text else {}),
        }
        record = _make_sweep_record(settings, base, families, sweep_tasks)
        labels = {task.adapter.name: task.parts.labels_of(TEST) for task in sweep_tasks}
        contents = {**record, **result.record(predictions), **({"labels": {TEST: labels}} if predictions else {})}
        (stage / SWEEP_NAME).write_text(provenance.to_json(contents), encoding="utf-8")
        (stage / CURVE_NAME).write_bytes(render_lambda_plot(result))
    return SweepReport(path, names, points, notes, result, warnings)


def _note_unused_sweep_inputs(inputs: Mapping[str, Any], families: Sequence[MergeFamily], calibrate: bool) -> list[str]:
    """Remarks on inputs that no method uses; ``expand_grid`` checks the options of the grid."""
    methods = [family.plan.method for family in families]
    is_used = {
        "features": any(family.plan.reads_features for family in families),
        "samples": calibrate or any(method.data_statistic for method in methods),
    }
    unused = [name for name, value in inputs.items() if value is not None and not is_used[name]]
    return [f"none of the methods uses --{name}; osrm merge --list shows what they need" for name in unused]


def _check_sweep_task_kind(tasks: Sequence[SweepTask], calibrate: bool, generate: bool) -> bool:
    """Whether the tasks are answered with text.

    Raises:
        OsrmError: If some are and others are not, or the options are for the other kind.
    """
    kinds = {task.parts.task.is_text for task in tasks}
    if len(kinds) > 1:
        raise OsrmError(
            "some tasks have labels, others are answered with text, and their scores have no common average",
            "sweep them one after the other, with --task",
        )
    (is_text,) = kinds
    if is_text and calibrate:
        raise OsrmError("tasks that are answered with text have no head to calibrate", "leave out --calibrate")
    if generate and not is_text:
        raise OsrmError("--generate and --generate-all are for tasks that are answered with text", "leave it out")
    return is_text


def _score_sweep_families(
    scorer: SweepScorer | TextSweepScorer,
    merges: SweepMerges,
    families: Sequence[MergeFamily],
    writers: Writers,
    scratch: Path,
    progress: Progress,
) -> SweepResult:
    points = []
    with progress("sweep singles", scorer.examples, "examples") as advance:
        single = scorer.score_single_adapters(advance)
    if writers and isinstance(scorer, TextSweepScorer):
        single = scorer.add_answers(scorer.single_adapters, single, writers == "all", progress)
    for family in families:
        name = family.plan.method.name
        scaled = merges.merge(family, scratch, progress)
        with progress(f"sweep {name}", len(scaled) * scorer.examples, "examples") as advance:
            for options, deltas in scaled:
                for calibrated, parts in enumerate(scorer.score(deltas, advance)):
                    points.append(ScoredMerge(name, options, bool(calibrated), parts[TEST], parts[VALIDATION]))
        if writers and isinstance(scorer, TextSweepScorer):
            own = points[-len(scaled) :]
            best = max(range(len(own)), key=lambda index: average(own[index].validation))
            for index in range(len(own)) if writers == "all" else [best]:
                written = _add_point_answers(scorer, own[index], scaled[index][1], writers == "all", progress)
                points[len(points) - len(own) + index] = written
    return SweepResult(**single, points=points)


def _add_point_answers(
    scorer: TextSweepScorer, point: ScoredMerge, deltas: SweptDeltaSource, everywhere: bool, progress: Progress
) -> ScoredMerge:
    parts = {TEST: dict(point.test), VALIDATION: dict(point.validation)}
    parts = scorer.add_answers(deltas, parts, everywhere, progress)
    return replace(point, test=parts[TEST], validation=parts[VALIDATION])


def _make_sweep_record(
    settings: Mapping[str, Any],
    base: BaseModelId,
    families: Sequence[MergeFamily],
    tasks: Sequence[SweepTask],
) -> dict[str, Any]:
    """The sweep's provenance."""
    adapters = {adapter.name: adapter.describe() for adapter in families[0].plan.adapters}
    data = {task.adapter.name: {"source": task.source, "sha256": dict(task.parts.sha256)} for task in tasks}
    lengths = {task.adapter.name: task.max_length for task in tasks}
    record = provenance.make_artifact_record(
        "sweep", {**settings, "max_length": lengths}, base=base, data=data, adapters=adapters
    )
    files = [file for family in families for file in family.layer_data.record.get("features", [])]
    weights = [{"path": row["path"], "sha256": row["sha256"]} for row in adapters.values()]
    record["inputs"] = weights + [file for index, file in enumerate(files) if file not in files[:index]]
    return record
