"""Merge adapters: recipe -> plan -> base model and data -> layers -> ``merged/``."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.tokenizer_files import copy_tokenizer_files, find_tokenizer_files
from osrm_cli.errors import OsrmError
from osrm_cli.merging.choice import choose_merge
from osrm_cli.merging.feature_moments import open_layer_data
from osrm_cli.merging.foreign import ForeignAdapter
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.merged_layer import estimate_merged_ranks, merge_layers
from osrm_cli.merging.output.merged_folder import write_merged_folder
from osrm_cli.merging.output.merged_model import MergeTarget
from osrm_cli.merging.output.unfinished_model import UnfinishedMerge, unfinished_merge_folder
from osrm_cli.merging.plan import Heads, MergedModules, MergePlan
from osrm_cli.merging.summary import MergeResult, describe_merge_plan, describe_merge_result
from osrm_cli.models.base_model import resolve_common_base_model
from osrm_cli.models.devices import device_with_float64, pick_device
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance

if TYPE_CHECKING:
    from osrm_cli.adapters.task_data import AdapterTaskSample


class FolderStep(Protocol):
    """A further step on the merged folder while it is staged, such as calibration."""

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings about the data that it reads."""

    def apply(
        self, stage: Path, base_dir: Path, device: torch.device, progress: Progress
    ) -> Mapping[str, Mapping[str, Any]]:
        """Change the folder in place; returns what was done for each task."""


def merge_adapters(
    adapters: Sequence[Path | str] = (),
    method: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    recipe: Path | str | None = None,
    features: Path | str | None = None,
    data: str | None = None,
    form: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    jobs: int | None = None,
    out: Path | str = "merged",
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    must_use: Collection[str] | None = None,
    calibrate: Callable[[Sequence[Adapter], str | None], FolderStep] | None = None,
    progress: Progress = no_progress,
) -> MergeResult:
    """Merge adapters, or full models; every task keeps its own head.

    Args:
        adapters: Adapter folders, LoRA files or hub ids, or folders of full models, in any order; none where a recipe
            names them.
        method: Name of the merging method; by default the recipe's, else ``task-arith``. ``auto`` takes the best
            for what is at hand, and leaves out what that does not use.
        options: The method's options, such as ``{"lambda": 0.3, "density": 0.2}``; they replace the recipe's.
        weights: Weights by the adapter's name; they replace the recipe's.
        recipe: YAML file that describes the merge.
        features: Folder of features files; ``features`` by default.
        data: ``hub``, ``mini`` or a folder; by default what each adapter was trained on.
        form: ``adapter`` or ``model``; by default the recipe's, else ``adapter``. Full models make a model.
        model: The base model, where it lies elsewhere now; full models need it, if the recipe does not name it. For
            ``distill`` that of the result, whatever those of the adapters are.
        revision: Its revision.
        dtype: Type of the written tensors; ``auto`` is the recipe's, else the widest of the adapters'.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        jobs: Layers merged at a time; by default as many as there are threads, two or one where layers are large.
        out: Folder to write.
        overwrite: Replace the folder if it exists.
        resume: Of a model: keep each finished file in ``<out>.unfinished`` until all are, and go on from those of an
            earlier run.
        dry_run: Check everything and write nothing; say what ranks would keep most of a dense result.
        must_use: Names of the options and inputs that go before the recipe's, and are an error where the merge does
            not use them; all by default. Others fill the recipe's gaps, and are left out where they are not used.
        calibrate: Prepares a further step on the folder from the adapters and ``data``, before anything is computed,
            such as ``prepare_calibration()``.
        progress: Draws bars.

    Raises:
        OsrmError: If adapters, features, data, base model or options are missing or do not fit together.

    Example:
        >>> from osrm_cli import merge_adapters
        >>> result = merge_adapters(["adapters/mini-inference", "adapters/mini-mood"], "ties", options={"density": 0.3})
        >>> result.summary["layers"]
        12
    """
    path = Path(out)
    atomic.refuse_existing(path, overwrite)
    given = {"method": method, "data": data, "form": form, "dtype": None if dtype == "auto" else dtype}
    given["features"] = str(features) if features else None
    choice = choose_merge(adapters, recipe, given, options or {}, (model, revision), must_use)
    optional = [name for name in options or {} if not choice.must_be_used(name)]
    plan = MergePlan.of(choice.recipe, weights, optional, choice.base)
    layer_data = open_layer_data(plan)
    reads_data = bool(plan.method.data_statistic) or calibrate is not None
    reads_base = reads_data or plan.recipe.output == "model"
    used = {"features": plan.reads_features, "data": reads_data, "model": reads_base, "revision": reads_base}
    inputs = {"features": features, "data": data, "model": model, "revision": revision}
    unused = [
        name for name, value in inputs.items() if value is not None and not used[name] and choice.must_be_used(name)
    ]
    if unused:
        raise OsrmError(
            f"method {plan.method.name} does not use --{unused[0]}", "osrm merge --list shows what it needs"
        )
    if calibrate:
        _check_merge_can_calibrate(plan)

    target_device = pick_device(device)
    base_dir, base = None, next(iter(plan.bases.values()), None)
    if reads_base:
        base_dir, base = resolve_common_base_model(plan.adapters, model, revision)
        plan = plan.with_target_modules(base_dir)
    modules = plan.read_saved_modules()
    samples = _draw_merge_samples(plan, modules.heads) if plan.method.data_statistic else []
    step = calibrate(plan.adapters, choice.recipe.data) if calibrate else None
    target = MergeTarget.find(plan, base_dir, modules) if base_dir and plan.recipe.output == "model" else None
    tokenizer, differences = find_tokenizer_files(
        [each for each in plan.adapters if not isinstance(each, ForeignAdapter)]
    )
    warnings = [text for adapter in plan.adapters for text in adapter.warnings]
    warnings += [text for sample in samples for text in sample.data.warnings] + list(step.warnings if step else ())
    warnings = list(dict.fromkeys(warnings)) + differences
    _check_merge_resumable(path, resume, overwrite, target is not None and not plan.reads_features and step is None)
    if target:
        target.check_space(path, UnfinishedMerge(unfinished_merge_folder(path)))
    if dry_run:
        ranks = estimate_merged_ranks(plan, layer_data, (0.9, 0.99), device_with_float64(target_device))
        planned = describe_merge_plan(path, plan, ranks)
        return replace(planned, notes=[*choice.notes, *planned.notes], warnings=warnings)

    if not resume:
        shutil.rmtree(unfinished_merge_folder(path), ignore_errors=True)
    with atomic.write_folder(path, overwrite) as stage, tempfile.TemporaryDirectory(dir=stage.parent) as scratch:
        if base_dir and samples:
            place = target_device, Path(scratch), progress
            plan, layer_data, found = _learn_layer_data(plan, samples, modules, base_dir, *place)
            modules, warnings = replace(modules, heads=plan.read_heads()), warnings + found
        unfinished = UnfinishedMerge.open(path, plan, base) if resume else None
        order = target.order(unfinished) if target else plan.layers
        with closing(
            merge_layers(plan, layer_data, order, jobs, device_with_float64(target_device), progress)
        ) as layers:
            contents = write_merged_folder(stage, plan, modules, layers, layer_data, base, target, unfinished)
        copy_tokenizer_files(tokenizer, stage)
        plan.write_recipe(stage)
        rows = step.apply(stage, base_dir, target_device, progress) if base_dir and step else {}
        provenance.write_digests(stage)
    if unfinished:
        unfinished.remove()
    result = describe_merge_result(path, plan, contents, layer_data.record, rows, modules.names)
    return replace(result, notes=[*choice.notes, *result.notes], warnings=warnings + result.warnings)


def _check_merge_can_calibrate(plan: MergePlan) -> None:
    """Check that every head belongs to the base model of the result."""
    if plan.foreign:
        raise OsrmError(
            f"the head of {plan.foreign[0].source} belongs to another base model, to which it cannot be calibrated",
            "leave out --calibrate",
        )
    if plan.has_full_models:
        raise OsrmError("heads of full models cannot be calibrated", "leave out --calibrate")


def _check_merge_resumable(path: Path, resume: bool, overwrite: bool, can_resume: bool) -> None:
    """Check what an earlier run has left, and whether this one may leave something."""
    if resume and not can_resume:
        raise OsrmError(
            "--resume keeps the files of a model whose merge reads neither features nor data", "leave out --resume"
        )
    folder = unfinished_merge_folder(path)
    if folder.exists() and not (resume or overwrite):
        raise OsrmError(
            f"{folder} contains an unfinished merge", "continue it with --resume, or start over with --overwrite"
        )


def _draw_merge_samples(plan: MergePlan, heads: Heads) -> "list[AdapterTaskSample]":
    from osrm_cli.merging.from_data import samples  # reading tasks is only for the methods that read data

    return samples.draw_merge_samples(plan, heads)


def _learn_layer_data(
    plan: MergePlan,
    samples: "list[AdapterTaskSample]",
    modules: MergedModules,
    base_dir: Path,
    device: torch.device,
    scratch: Path,
    progress: Progress,
) -> tuple[MergePlan, LayerData, list[str]]:
    """Run the models on their texts; returns the plan with what a method has learned of it, and warnings."""
    if plan.has_full_models:
        from osrm_cli.merging.from_data.full_fisher import FullFisherInformation

        return plan, FullFisherInformation(plan, samples, base_dir, device, scratch, progress), []
    from osrm_cli.merging.from_data.gather import gather_layer_data, load_task_models  # which imports transformers

    models = load_task_models(plan, samples, modules, base_dir, device, progress)
    plan, layer_data = gather_layer_data(plan, models, scratch, progress)
    return plan, layer_data, list(dict.fromkeys(text for model in models for text in model.warnings))
