"""``osrm diagnose``: features/ and perhaps adapters/* -> diagnosis/."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table


def diagnose(
    features: Annotated[Path, typer.Argument(help="Folder of features files.")] = Path("features"),
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Adapters or full models of these tasks, to measure interference.")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", help="scores.json or sweep.json of merges of the adapters; repeat for more."),
    ] = None,
    energy: Annotated[
        float,
        typer.Option("--energy", min=0.01, max=1, help="Share of the energy in a task's principal subspace."),
    ] = 0.99,
    task: options.TaskOf = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write.")] = Path("diagnosis"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how tasks interfere, before or after training.

    Example: osrm diagnose features
    """
    from osrm_cli.diagnosis.diagnose import diagnose as diagnose_tasks

    console = Console(json, quiet)
    diagnosis = diagnose_tasks(
        features,
        adapters or [],
        scores=scores or [],
        energy=energy,
        tasks=task or [],
        model=model,
        revision=revision,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=console.progress,
    )
    if dry_run:
        read = ", ".join([*diagnosis.tasks, *(f"adapter {adapter}" for adapter in diagnosis.adapters)])
        console.result({"would_write": [str(out)]}, f"would write {out}: {read}")
        return
    for warning in diagnosis.warnings:
        console.warn(warning)
    console.result({"path": str(out), **diagnosis.findings}, _console_output(diagnosis.findings))


def _console_output(findings: Mapping[str, Any]) -> Any:
    from rich.console import Group

    parts: list[Any] = [_rich_task_table(findings), *_printed_verdicts(findings)]
    if "interference" in findings:
        parts += [
            _rich_interference_table(findings),
            _rich_adapter_table(findings),
            *_printed_predictions(findings),
            *_printed_measurements(findings),
        ]
    return Group(*parts)


def _rich_task_table(findings: Mapping[str, Any]) -> Any:
    short = _shorten_printed_layers(group["layers"][0] for group in findings["groups"])
    rows = table(
        "task", "tokens", "effective rank", "room", "gain", "least room", "most room", title="Features (layers' means)"
    )
    for task, row in findings["tasks"].items():
        ends = [f"{short[row[end]['layer']]} {row[end]['free']:.1%}" for end in ("least", "most")]
        gain = "-" if row["gain"] is None else f"{row['gain']:.1f}"
        rows.add_row(task, str(row["tokens"]), f"{row['effective_rank']:.0f}", f"{row['free']:.1%}", gain, *ends)
    return rows


def _printed_verdicts(findings: Mapping[str, Any]) -> Iterable[str]:
    groups = {
        helps: [t for t, row in findings["tasks"].items() if row["helps"] is helps] for helps in (True, False, None)
    }
    texts = {
        True: "An initialization can help: outside the others' principal subspace its own energy is much larger.",
        False: "An initialization can hardly help: outside the others' principal subspace its own energy is not much "
        "larger.",
        None: "Whether an initialization can help cannot be told from these features.",
    }
    yield from (f"{', '.join(tasks)}: {texts[helps]}" for helps, tasks in groups.items() if tasks)
    yield "room: own energy outside the others' principal subspace. gain: room over the others' own energy there.\n"


def _rich_interference_table(findings: Mapping[str, Any]) -> Any:
    matrix = findings["interference"]
    rows = table("update \\ inputs", *matrix, title="Energy of the update over the base model's, in percent")
    for task, row in matrix.items():
        rows.add_row(task, *(f"{100 * value:.3g}" for value in row.values()))
    return rows


def _rich_adapter_table(findings: Mapping[str, Any]) -> Any:
    rows = table("adapter", "norm", "over W0's", "start", "drift of A", "start kept", title="Adapters")
    for task, row in findings["adapters"].items():
        kept = "-" if row["kept"] is None else f"{row['kept']:.0%} (random {row['chance']:.0%})"
        drift = "-" if row["drift"] is None else f"{row['drift']:.0%}"
        rows.add_row(task, f"{row['norm']:.3g}", f"{row['relative_norm']:.2%}", row["objective"] or "-", drift, kept)
    return rows


def _printed_predictions(findings: Mapping[str, Any]) -> Iterable[str]:
    tasks = findings["prediction"]["tasks"]
    if len(tasks) < 2:
        return
    yield "Predicted, the worst first (energy of the others' updates on a task's inputs, over that of its own update):"
    yield ", ".join(f"{row['task']} {_printed_ratio(row['to_own'])} (most by {row['worst']})" for row in tasks)
    pairs = findings["prediction"]["pairs"][:3]
    yield (
        "Worst pairs: "
        + ", ".join(f"{p['update']} on {p['inputs']} {_printed_ratio(p['to_own'])}" for p in pairs)
        + "\n"
    )


def _printed_measurements(findings: Mapping[str, Any]) -> Iterable[str]:
    measured = findings["measured"] or {}
    for row in measured.get("merges", ()):
        yield f"{row['scores']}: {_printed_correlation(row)}"
    if measured.get("pairs"):
        yield f"merges of two: {_printed_correlation(measured['pairs'])}"


def _printed_correlation(row: Mapping[str, Any]) -> str:
    if row["rho"] is None:
        return f"too few or equal points for a rank correlation (n {row['n']})"
    text = f"rank correlation of prediction and drop {row['rho']:+.2f} (n {row['n']}, p {row['p']:.2g})"
    own = row["to_own"]
    return text if own["rho"] is None else f"{text}; over the own energy {own['rho']:+.2f} (p {own['p']:.2g})"


def _printed_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.2g}"


def _shorten_printed_layers(layers: Iterable[str]) -> dict[str, str]:
    """The layers' names without what they share at both ends."""
    parts = {name: name.split(".") for name in layers}
    if len(parts) < 2:
        return {name: name for name in parts}
    head = _count_parts_not_printed(parts.values())
    tail = _count_parts_not_printed(name[:head:-1] for name in parts.values())
    return {name: ".".join(split[head : len(split) - tail]) for name, split in parts.items()}


def _count_parts_not_printed(names: Iterable[Sequence[str]]) -> int:
    """How many parts names begin with alike."""
    return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))))
