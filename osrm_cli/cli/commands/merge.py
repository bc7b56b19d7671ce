"""``osrm merge``: adapters/<task>/ -> merged/."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, align_console_columns
from osrm_cli.cli.options import Aggregate, Completions, Device, DType, OutputFormat, Start
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import METHODS


def _number_option(name: str, text: str, low: float | None = None, high: float | None = None) -> Any:
    return typer.Option(name, help=text, min=low, max=high, show_default=False)


def merge(
    context: typer.Context,
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            help="Adapter folders, LoRA files or hub ids, or folders of full models, in any order.", show_default=False
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="How to merge, or auto; default task-arith. See --list.",
            autocompletion=options.shell_completer(METHODS),
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float | None, _number_option("--lambda", "One factor on the merged update; default the method's.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", metavar="NAME=NUMBER", help="An adapter's weight, of any sign.")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="NUMBER or auto:SHARE",
            help="Recompress to this rank, or each layer to the rank that keeps this share; with --features, of the "
            "energy that inputs see.",
            show_default=False,
        ),
    ] = None,
    energy: Annotated[float | None, _number_option("--energy", "Recompress to this share of the energy.", 0, 1)] = None,
    density: Annotated[float | None, _number_option("--density", "Share of the entries to keep.", 0, 1)] = None,
    aggregate: Annotated[
        Aggregate | None, typer.Option("--aggregate", help="Mean or sum of entries that agree.", show_default=False)
    ] = None,
    window: Annotated[float | None, _number_option("--window", "della: spread of the drop probability.", 0, 1)] = None,
    outliers: Annotated[
        float | None, _number_option("--outliers", "breadcrumbs, tatr: share of top entries dropped.", 0, 1)
    ] = None,
    mask_scale: Annotated[
        float | None, _number_option("--mask-scale", "consensus: threshold of a task's mask.", 0)
    ] = None,
    agreement: Annotated[
        int | None, _number_option("--agreement", "consensus: tasks that must use an entry.", 1)
    ] = None,
    common: Annotated[float | None, _number_option("--common", "iso-cts: share of common directions.", 0, 1)] = None,
    floor: Annotated[float | None, _number_option("--floor", "svc: smallest divisor.", 0)] = None,
    alpha: Annotated[float | None, _number_option("--alpha", "regmean: factor on off-diagonal moments.", 0, 1)] = None,
    ridge: Annotated[float | None, _number_option("--ridge", "sequential: pull towards the mean update.", 0)] = None,
    trim: Annotated[int | None, _number_option("--trim", "cat-merging: directions taken out for each task.", 1)] = None,
    penalty: Annotated[
        float | None, _number_option("--penalty", "cat-merging: weight of a task's own loss.", 0)
    ] = None,
    epsilon: Annotated[float | None, _number_option("--epsilon", "ram: smallest magnitude that counts.", 0)] = None,
    bonus: Annotated[float | None, _number_option("--bonus", "ram: growth of a task's own entries, RAM+.", 0)] = None,
    reach: Annotated[float | None, _number_option("--reach", "nearswap: how far an entry moves at most.", 0)] = None,
    primary: Annotated[
        str | None,
        typer.Option(
            "--primary", metavar="NAME", help="nearswap: the adapter that is moved; default the first by name."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", envvar="OSRM_SEED", min=0, help="Seed of masks and samples.", show_default=False),
    ] = None,
    data: options.RecordedData = None,
    samples: Annotated[
        int | None, _number_option("--samples", "Training examples read per task; default 100.", 1)
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Calibrate the heads, on 128 texts per task or --samples.")
    ] = False,
    steps: Annotated[int | None, _number_option("--steps", "Steps of learning; default the method's.", 1)] = None,
    lr: Annotated[float | None, _number_option("--lr", "distill, matched-weights: peak learning rate.", 0)] = None,
    mixed_texts: Annotated[
        int | None,
        _number_option(
            "--mixed-texts",
            "distill: further texts for each text of a classifier, put together from parts of two; default 7.",
            0,
        ),
    ] = None,
    start: Annotated[
        Start | None, typer.Option("--start", help="distill: where to begin; default tsv.", show_default=False)
    ] = None,
    target_modules: Annotated[
        list[str] | None,
        typer.Option(
            "--target-modules",
            help="distill: further layers to learn; repeat for more, or 'all-linear'. Default: those of the adapters.",
            show_default=False,
        ),
    ] = None,
    completions: Annotated[
        Completions | None,
        typer.Option(
            "--completions",
            help="Text tasks: read what the single adapters write after the prompts, or what is given; default own.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of features files; default features.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML file that describes the merge, ours or mergekit's.")
    ] = None,
    form: Annotated[
        OutputFormat | None, typer.Option("--as", help="What to write; default adapter.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--base",
            envvar="OSRM_MODEL",
            help="Base model, if it is not where it was recorded; full models do not record theirs. distill: the "
            "result's, from adapters of any base model.",
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    dtype: options.DTypeOption = DType.AUTO,
    device: options.DeviceOption = Device.AUTO,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Layers merged at a time; default as many as threads, two or one where layers are large.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write.")] = Path("merged"),
    overwrite: options.Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of a model: keep finished files when interrupted, and go on from them.")
    ] = False,
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and exit.")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge adapters, or full models; every task keeps its own head.

    Example: osrm merge adapters/* --method task-arith --lambda 0.3
    """
    console = Console(json, quiet)
    if list_methods:
        _print_methods(console)
        return

    from osrm_cli.merging.merge import merge_adapters
    from osrm_cli.merging.requirements import OPTIONS

    values = {name: context.params[_typer_parameter_name(name)] for name in OPTIONS}
    others = ("method", "features", "data", "form", "model", "revision", "dtype")
    strict = {name for name in (*OPTIONS, *others) if _is_option_typed(context, name)}
    step = None
    if calibrate:
        from osrm_cli.calibration.calibrate import DEFAULT_SAMPLES, prepare_calibration

        step = prepare_calibration(samples or DEFAULT_SAMPLES, seed or 0)
        strict -= {"samples", "seed"}
    result = merge_adapters(
        adapters or [],
        method,
        options={name: _plain_option_value(value) for name, value in values.items() if value not in (None, ())},
        weights=_parse_weight_options(weight or []),
        recipe=recipe,
        features=features,
        data=data,
        form=_plain_option_value(form),
        model=model,
        revision=revision,
        dtype=dtype.value,
        device=device.value,
        jobs=jobs,
        out=out,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        must_use=strict,
        calibrate=step,
        progress=console.progress,
    )
    for warning in result.warnings:
        console.warn(warning)
    if dry_run:
        console.result({"would_write": str(out), **result.summary}, f"would write {out}: {result.line}")
    else:
        console.result(result.summary, f"{out}: {result.line}")
    for note in result.notes:
        console.note(note)


def _typer_parameter_name(option: str) -> str:
    """The parameter of ``merge`` that takes an option of a method; ``lambda`` is a keyword."""
    return "scale" if option == "lambda" else option


def _plain_option_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.value if isinstance(value, StrEnum) else value


def _is_option_typed(context: typer.Context, name: str) -> bool:
    return options.given_on_command_line(context, _typer_parameter_name(name))


def _parse_weight_options(texts: Sequence[str]) -> dict[str, float]:
    """Weights by adapter from ``NAME=NUMBER``."""
    weights: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name in weights:
            raise OsrmError(f"--weight {text}: {name} has a weight already", "leave out one of them")
        try:
            weights[name] = float(number)
        except ValueError:
            raise OsrmError(f"--weight {text}, expected NAME=NUMBER", "for example --weight sst2=0.7") from None
    return weights


def _print_methods(console: Console) -> None:
    keys = ("name", "summary", "needs", "result")
    methods = [{key: getattr(row, key) for key in keys} for row in METHODS]
    rows = [("method", "needs", "result", "what it does")]
    rows += [(row.name, ", ".join(row.needs) or "-", row.result, row.summary) for row in METHODS]
    console.result({"methods": methods}, align_console_columns(rows))
