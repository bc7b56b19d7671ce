"""``osrm merge``: adapters/<task>/ -> merged/."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console
from osrm_cli.cli.options import Aggregate, Device, DType, OutputFormat
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import METHODS, find_method

if TYPE_CHECKING:
    import torch

    from osrm_cli.adapters.task_data import TaskSample
    from osrm_cli.calibration.calibrate import Calibration
    from osrm_cli.merging.merged_folder import MergeResult
    from osrm_cli.merging.plan import MergePlan
    from osrm_cli.merging.recipe import MergeRecipe
    from osrm_cli.storage.provenance import BaseModelId


def _number(name: str, text: str, low: float | None = None, high: float | None = None) -> Any:
    return typer.Option(name, help=text, min=low, max=high, show_default=False)


def merge(
    context: typer.Context,
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Adapter folders or hub ids, in any order.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="How to merge; default task-arith. See --list.",
            autocompletion=options.completer(METHODS),
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float | None, _number("--lambda", "One factor on the merged update; default the method's.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", metavar="NAME=NUMBER", help="An adapter's weight, of any sign.")
    ] = None,
    rank: Annotated[int | None, _number("--rank", "Recompress to this rank.", 1)] = None,
    energy: Annotated[float | None, _number("--energy", "Recompress to this share of the energy.", 0, 1)] = None,
    density: Annotated[float | None, _number("--density", "Share of the entries to keep.", 0, 1)] = None,
    aggregate: Annotated[
        Aggregate | None, typer.Option("--aggregate", help="Mean or sum of entries that agree.", show_default=False)
    ] = None,
    window: Annotated[float | None, _number("--window", "della: spread of the drop probability.", 0, 1)] = None,
    outliers: Annotated[float | None, _number("--outliers", "breadcrumbs: share of top entries dropped.", 0, 1)] = None,
    mask_scale: Annotated[float | None, _number("--mask-scale", "consensus: threshold of a task's mask.", 0)] = None,
    agreement: Annotated[int | None, _number("--agreement", "consensus: tasks that must use an entry.", 1)] = None,
    common: Annotated[float | None, _number("--common", "iso-cts: share of common directions.", 0, 1)] = None,
    floor: Annotated[float | None, _number("--floor", "svc: smallest divisor.", 0)] = None,
    alpha: Annotated[float | None, _number("--alpha", "regmean: factor on off-diagonal moments.", 0, 1)] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", envvar="OSRM_SEED", min=0, help="Seed of masks and samples.", show_default=False),
    ] = None,
    data: options.RecordedData = None,
    samples: Annotated[int | None, _number("--samples", "Training examples read per task; default 100.", 1)] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Calibrate the heads, on 128 texts per task or --samples.")
    ] = False,
    steps: Annotated[int | None, _number("--steps", "adamerging: steps of learning; default 300.", 1)] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of features files; default features.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML file that describes the merge, ours or mergekit's.")
    ] = None,
    form: Annotated[
        OutputFormat | None, typer.Option("--as", help="What to write; default adapter.", show_default=False)
    ] = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    dtype: options.DTypeOption = DType.AUTO,
    device: options.DeviceOption = Device.AUTO,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Layers merged at a time.")] = 1,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("merged"),
    overwrite: options.Overwrite = False,
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and exit.")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge adapters into one; every task keeps its own head.

    Example: osrm merge adapters/* --method task-arith --lambda 0.3
    """
    console = Console(json, quiet)
    if list_methods:
        _list(console)
        return

    from osrm_cli.merging.merged_folder import Execution, write_merged_folder
    from osrm_cli.merging.plan import MergePlan
    from osrm_cli.merging.recipe import parse_weights
    from osrm_cli.merging.summary import plan_dict, plan_line
    from osrm_cli.models import devices
    from osrm_cli.models.checkpoint import Checkpoint
    from osrm_cli.storage import atomic

    asked = _recipe(recipe, adapters, method)
    asked = replace(
        asked,
        options={**asked.options, **_given(context, asked.method, calibrate)},
        features=str(features) if features else asked.features,
        data=data or asked.data,
        output=form.value if form else asked.output,
        dtype=asked.dtype if dtype == DType.AUTO else dtype.value,
    )
    atomic.refuse_existing(out, overwrite)
    plan = MergePlan.of(asked, parse_weights(weight or []))
    _refuse_unused(context, plan, calibrate)
    where = devices.pick_device(device)
    place, base = None, next((adapter.base for adapter in plan.adapters if adapter.base), None)
    if plan.recipe.output == "model" or plan.method.data_statistic or calibrate:
        place, base = _base(plan, model, revision)
    drawn = _drawn(plan)
    calibration = _calibration(plan, asked.data, samples, seed) if calibrate else None
    checkpoint = Checkpoint.open(place) if place and plan.recipe.output == "model" else None
    if dry_run:
        console.result({"would_write": str(out), **plan_dict(plan)}, f"would write {out}: {plan_line(plan)}")
        return
    with atomic.write_folder(out, overwrite) as stage, tempfile.TemporaryDirectory(dir=stage.parent) as scratch:
        if place and drawn:
            plan = _informed(plan, drawn, place, where, Path(scratch), console)
        with console.progress(f"merge {plan.method.name}", len(plan.layers), "layers") as advance:
            work = Execution(jobs, devices.with_float64(where), advance)
            done = write_merged_folder(stage, plan, work, base, checkpoint)
        rows = calibration.apply(stage, place, where, console.progress) if place and calibration else {}
    _report(console, out, plan, done, rows)


def _recipe(path: Path | None, adapters: Sequence[str] | None, method: str | None) -> "MergeRecipe":
    """The recipe, or what stands for one on the command line."""
    from osrm_cli.merging.recipe import AdapterEntry, MergeRecipe, read_recipe

    if path and adapters:
        raise OsrmError("adapters are given twice: on the command line and by --recipe", "leave out one of them")
    if not path and not adapters:
        raise OsrmError("no adapters to merge", "osrm merge adapters/* --method task-arith --lambda 0.3")
    asked = read_recipe(path) if path else MergeRecipe("task-arith", tuple(map(AdapterEntry, adapters or [])))
    return replace(asked, method=method or asked.method)


def _given(context: typer.Context, method: str, calibrate: bool) -> dict[str, Any]:
    """The method's options that are set; from the environment and osrm.toml only those that it uses."""
    from osrm_cli.merging import requirements

    used = requirements.used_options(find_method(method))
    apart = {"samples", "seed"} - used if calibrate else set()
    names = [name for name in requirements.OPTIONS if name not in apart]
    values = {name: context.params["scale" if name == "lambda" else name] for name in names}
    return {
        name: value.value if isinstance(value, Aggregate) else value
        for name, value in values.items()
        if value is not None
        and (name in used or options.given_on_command_line(context, "scale" if name == "lambda" else name))
    }


def _refuse_unused(context: typer.Context, plan: "MergePlan", calibrate: bool) -> None:
    """Check that the inputs on the command line are used; ``Plan`` has checked the method's own options."""
    needs_model = bool(plan.method.data_statistic) or calibrate or plan.recipe.output == "model"
    used = {
        "features": "features" in plan.method.needs,
        "data": bool(plan.method.data_statistic) or calibrate,
        "model": needs_model,
        "revision": needs_model,
    }
    for name, is_used in used.items():
        if not is_used and options.given_on_command_line(context, name):
            raise OsrmError(f"method {plan.method.name} does not use --{name}", "osrm merge --list shows what it needs")


def _base(plan: "MergePlan", model: str | None, revision: str | None) -> tuple[Path, "BaseModelId"]:
    """The base model's folder and its identity, checked against the adapters."""
    from osrm_cli.models.base_model import resolve_base_model

    known = next((adapter for adapter in plan.adapters if adapter.base), plan.adapters[0])
    revision = revision or known.config.revision
    return resolve_base_model(known.folder, known.base, known.config.base_model, model, revision)


def _drawn(plan: "MergePlan") -> "list[TaskSample]":
    """The examples of each task that the method reads, if it reads any."""
    if not plan.method.data_statistic:
        return []
    from osrm_cli.merging.from_data import samples

    return samples.draw_for_plan(plan)


def _calibration(plan: "MergePlan", data: str | None, samples: int | None, seed: int | None) -> "Calibration":
    """What calibrates the heads once they are written."""
    from osrm_cli.calibration.calibrate import DEFAULT_SAMPLES, Calibration, CalibrationSettings

    return Calibration.draw(
        [a for a in plan.adapters if a.head_tensors()], data, CalibrationSettings(samples or DEFAULT_SAMPLES, seed or 0)
    )


def _informed(
    plan: "MergePlan", samples: "list[TaskSample]", place: Path, where: "torch.device", scratch: Path, console: Console
) -> "MergePlan":
    """The plan with what passes over the model on the tasks' examples find."""
    from osrm_cli.merging.from_data import task_models
    from osrm_cli.merging.from_data.gather import gather_layer_data

    models = task_models.load_task_models(plan, samples, place, where)
    return gather_layer_data(plan, models, scratch, console.progress)


def _list(console: Console) -> None:
    keys = ("name", "summary", "needs", "result")
    facts = [{key: getattr(row, key) for key in keys} for row in METHODS]
    rows = [("method", "needs", "result", "what it does")]
    rows += [(row.name, ", ".join(row.needs) or "-", row.result, row.summary) for row in METHODS]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    console.result({"methods": facts}, "\n".join(lines))


def _report(
    console: Console, out: Path, plan: "MergePlan", done: "MergeResult", rows: dict[str, dict[str, Any]]
) -> None:
    from osrm_cli.merging.summary import merge_warnings, plan_line, rank_and_energy, result_dict

    facts = {**result_dict(plan, done), "path": str(out), **({"calibration": rows} if rows else {})}
    console.result(facts, f"{out}: {plan_line(plan)}{rank_and_energy(done)}")
    for task, entropy in facts.get("entropy", {}).items():
        console.note(f"{task}: mean entropy {entropy['before']:.4f} before, {entropy['after']:.4f} after")
    for task, row in rows.items():
        ending = "" if row["used"] else ": uncalibrated is kept"
        console.note(f"{task}: difference {row['before']:.4g} before calibration, {row['error']:.4g} after{ending}")
    for doubt in merge_warnings(plan, done):
        console.warn(doubt)
