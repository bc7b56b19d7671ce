"""``osrm sweep``: adapters/<task>/ -> sweep/sweep.json and sweep/curve.png."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType, OutputFormat
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import METHODS

if TYPE_CHECKING:
    from osrm_cli.sweep.grid import MergeFamily, Value
    from osrm_cli.sweep.merges import GridMerges
    from osrm_cli.sweep.results import SweepResult
    from osrm_cli.sweep.scorer import SweepScorer
    from osrm_cli.sweep.tasks import SweepTask


def sweep(
    context: typer.Context,
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders or hub ids with heads, in any order.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="How to merge; repeat for more. Default: task-arith.",
            autocompletion=options.completer(METHODS),
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            "--lambda",
            metavar="VALUES",
            help="Numbers with commas between, or START:STOP:STEP; repeat for more. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        list[str] | None,
        typer.Option("--density", metavar="VALUES", help="Likewise, for methods that use it.", show_default=False),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUES", help="Any other option of osrm merge, likewise.", show_default=False
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Task to score; repeat for more. Default: every adapter's.", show_default=False),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Score every merge with calibrated heads too.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Training examples read per task; default 128 for --calibrate, 100 for a method.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of features files; default features.", show_default=False)
    ] = None,
    data: options.RecordedData = None,
    split: Annotated[str, typer.Option("--split", help="Split to score on.")] = "dev",
    validation_split: Annotated[
        str | None,
        typer.Option(
            "--validation-split",
            help="Split that chooses the best. Default: a random half of --split, and the other half reports.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Examples per task and split; the first ones. Default: all.", show_default=False
        ),
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Keep predictions of the singles and the best.")
    ] = False,
    form: Annotated[
        OutputFormat, typer.Option("--as", help="What is scored: the merge as an adapter, or as a model.")
    ] = OutputFormat.ADAPTER,
    seed: options.Seed = 0,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 64,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.FLOAT32,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("sweep"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score merges over a grid; choose on one half of the examples, report on the other.

    Example: osrm sweep adapters/* --method task-arith --lambda 0.1:1.0:0.1
    """
    from osrm_cli.calibration.calibrate import DEFAULT_SAMPLES
    from osrm_cli.merging import recipe
    from osrm_cli.models import devices
    from osrm_cli.models.base_model import resolve_base_model
    from osrm_cli.models.classifier import check_max_length
    from osrm_cli.storage import atomic
    from osrm_cli.sweep import grid
    from osrm_cli.sweep.merges import GridMerges
    from osrm_cli.sweep.scorer import SweepScorer
    from osrm_cli.sweep.tasks import SweepDataSpec

    console = Console(json, quiet)
    atomic.refuse_existing(out, overwrite)
    axes, spelled = _axes(scale, density, option), list(dict.fromkeys(method or ["task-arith"]))
    where = devices.pick_device(device)
    precision = devices.pick_dtype(dtype, where)
    common = {"seed": [seed]} | ({"samples": [samples]} if samples else {})
    entries = tuple(map(recipe.AdapterEntry, adapters))
    asked = recipe.MergeRecipe("", entries, {}, str(features) if features else None, form.value, data=data)
    families = grid.expand_grid(asked, spelled, axes, common)
    _refuse_unused(context, families, calibrate)
    known = next((adapter for adapter in families[0].plan.adapters if adapter.base), families[0].plan.adapters[0])
    place, base = resolve_base_model(
        known.folder, known.base, known.config.base_model, model, revision or known.config.revision
    )
    unlabelled = (samples or DEFAULT_SAMPLES) if calibrate else 0
    wanted = SweepDataSpec(data, split, validation_split, limit, max_length, unlabelled, seed)
    entrants = wanted.load_tasks(families[0].plan.adapters, task or [])
    check_max_length(place, max(entrant.max_length for entrant in entrants))
    merges = GridMerges(families, place, where)
    points = sum(len(family.lambdas) for family in families)
    if dry_run:
        tasks = ", ".join(entrant.adapter.name for entrant in entrants)
        console.result({"would_write": str(out), "points": points}, f"would write {out}: {points} merges on {tasks}")
        return
    with atomic.write_folder(out, overwrite) as stage, tempfile.TemporaryDirectory(dir=stage.parent) as scratch:
        bench = SweepScorer(families[0].plan, entrants, place, where, precision, batch_size)
        found = _scored(bench, merges, families, Path(scratch), console)
        settings = {
            "methods": list(dict.fromkeys(family.plan.method.name for family in families)),
            "grid": {**common, **axes},
            "as": form.value,
            "split": split,
            "validation_split": validation_split,
            "limit": limit,
            "seed": seed,
            "calibrate": unlabelled,
            "dtype": str(precision).removeprefix("torch."),
        }
        _write(stage, found, _record(settings, base, families, entrants), predictions)
    console.result({"path": str(out), **found.facts()}, _table(found))


def _axes(
    scale: Sequence[str] | None, density: Sequence[str] | None, others: Sequence[str] | None
) -> "dict[str, list[Value]]":
    """The grid: values by option."""
    from osrm_cli.sweep import grid

    axes = {}
    for name, texts in (("lambda", scale), ("density", density)):
        if texts:
            axes[name] = grid.parse_values(f"--{name}", texts)
    for text in others or []:
        name, values = grid.parse_option(text)
        if name in axes:
            raise OsrmError(f"--option {text}: {name} is given twice", "say all its values at once")
        axes[name] = values
    return axes


def _refuse_unused(context: typer.Context, families: "Sequence[MergeFamily]", calibrate: bool) -> None:
    """Check that inputs on the command line are used; ``grid`` has checked the options that span it."""
    methods = [family.plan.method for family in families]
    used = {
        "features": any("features" in method.needs for method in methods),
        "samples": calibrate or any(method.data_statistic for method in methods),
    }
    for name, is_used in used.items():
        if not is_used and options.given_on_command_line(context, name):
            raise OsrmError(f"none of the methods uses --{name}", "osrm merge --list shows what they need")


def _scored(
    bench: "SweepScorer", merges: "GridMerges", families: "Sequence[MergeFamily]", scratch: Path, console: Console
) -> "SweepResult":
    from osrm_cli.evaluation.scores import ScoredMerge
    from osrm_cli.sweep.results import SweepResult
    from osrm_cli.tasks.validation_split import TEST, VALIDATION

    points = []
    with console.progress("sweep singles", bench.examples, "examples") as advance:
        single = bench.singles(advance)
    for family in families:
        name = family.plan.method.name
        changes = merges.of(family, scratch, console.progress)
        with console.progress(f"sweep {name}", len(changes) * bench.examples, "examples") as advance:
            for chosen, change in changes:
                for calibrated, parts in enumerate(bench.score(change, advance)):
                    points.append(ScoredMerge(name, chosen, bool(calibrated), parts[TEST], parts[VALIDATION]))
    return SweepResult(**single, points=points)


def _record(
    settings: Mapping[str, Any], base: Any, families: "Sequence[MergeFamily]", entrants: "Sequence[SweepTask]"
) -> dict[str, Any]:
    """Where the sweep came from."""
    from osrm_cli.adapters import training_record
    from osrm_cli.storage import provenance
    from osrm_cli.tasks.validation_split import TEST

    adapters = {adapter.name: training_record.describe_adapter(adapter) for adapter in families[0].plan.adapters}
    data = {each.adapter.name: {"source": each.source, "sha256": dict(each.parts.sha256)} for each in entrants}
    lengths = {each.adapter.name: each.max_length for each in entrants}
    record = provenance.make_record(
        "sweep", {**settings, "max_length": lengths}, base=base, data=data, adapters=adapters
    )
    files = [file for family in families for file in family.plan.layer_data.record().get("features", [])]
    read = [{"path": row["path"], "sha256": row["sha256"]} for row in adapters.values()]
    record["inputs"] = read + [file for index, file in enumerate(files) if file not in files[:index]]
    return record | {"labels": {TEST: {each.adapter.name: each.parts.labels_of(TEST) for each in entrants}}}


def _write(stage: Path, found: "SweepResult", record: dict[str, Any], predictions: bool) -> None:
    from osrm_cli.storage import provenance
    from osrm_cli.sweep.lambda_plot import draw_lambda_plot
    from osrm_cli.sweep.results import CURVE, NAME

    labels = record.pop("labels")
    facts = {**record, **found.facts(predictions), **({"labels": labels} if predictions else {})}
    (stage / NAME).write_text(provenance.to_json(facts), encoding="utf-8")
    draw_lambda_plot(found, stage / CURVE)


def _table(found: "SweepResult") -> Any:
    from osrm_cli.evaluation.scores import average

    made = table("best", "options", "validation", "test", "of single", title="Average score, best by validation")
    single = average(found.test)
    for index in found.best():
        point = found.points[index]
        shown = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in sorted(point.options.items()))
        test = average(point.test)
        share = f"{100 * test / single:.1f} %" if single > 0 else "-"
        name = f"{point.method}, calibrated" if point.calibrated else point.method
        made.add_row(name, shown, f"{average(point.validation):.2f}", f"{test:.2f}", share)
    made.add_section()
    made.add_row("single adapters", "", f"{average(found.validation):.2f}", f"{single:.2f}", "")
    return made
