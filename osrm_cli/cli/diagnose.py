"""``osrm diagnose``: features/ and perhaps adapters/* -> diagnosis/."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table

if TYPE_CHECKING:
    from osrm_cli.adapters.adapter import Adapter
    from osrm_cli.diagnosis.feature_overlap import LayerGroup
    from osrm_cli.diagnosis.write import AdapterDiagnosis
    from osrm_cli.features.feature_set import FeatureSet


def diagnose(
    features: Annotated[Path, typer.Argument(help="Folder of features files.")] = Path("features"),
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Adapters of these tasks, for what they do to one another's inputs.")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", help="scores.json or sweep.json of merges of the adapters; repeat for more."),
    ] = None,
    energy: Annotated[
        float, typer.Option("--energy", min=0.01, max=1, help="Share of the energy that a task's main space holds.")
    ] = 0.99,
    task: options.TaskOf = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("diagnosis"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how tasks interfere, before or after training.

    Example: osrm diagnose features
    """
    from osrm_cli.diagnosis import score_drops
    from osrm_cli.diagnosis.write import diagnosis_dict, write_diagnosis
    from osrm_cli.errors import OsrmError
    from osrm_cli.features.adapter_match import check_features, open_adapters
    from osrm_cli.features.feature_set import FeatureSet
    from osrm_cli.storage import atomic

    console = Console(json, quiet)
    if scores and not adapters:
        raise OsrmError(
            "--scores needs the adapters that were merged", "osrm diagnose features adapters/* --scores ..."
        )
    source = FeatureSet.open(features).select(consumer="diagnose")
    if len(source.tasks) < 2:
        raise OsrmError(f"{features} holds features of one task alone", "osrm collect --task OTHER")
    opened = open_adapters(adapters or [], task or [])
    check_features(opened, source)
    merges = [merge for path in scores or [] for merge in score_drops.read_drops(path)]
    place = _base(opened, source, model, revision) if opened else None
    atomic.refuse_existing(out, overwrite)
    if dry_run:
        read = ", ".join([*source.tasks, *(f"adapter {adapter.source}" for adapter in opened)])
        console.result({"would_write": [str(out)]}, f"would write {out}: {read}")
        return
    record = _record(source, opened, scores or [], {"energy": energy})
    groups = _compared(source, energy, console)
    trained = _trained(opened, source, place, merges, record, console) if place else None
    found = diagnosis_dict(source, groups, trained)
    with atomic.write_folder(out, overwrite) as stage:
        write_diagnosis(stage, found, record, energy)
    for doubt in found["warnings"] + [d for start in found.get("adapters", {}).values() for d in start["concerns"]]:
        console.warn(doubt)
    console.result({"path": str(out), **found}, _text(found))


def _base(adapters: "list[Adapter]", source: "FeatureSet", model: str | None, revision: str | None) -> Path:
    """The base model's folder: whatever says which it is must agree."""
    from osrm_cli.models.base_model import resolve_base_model

    features = next(iter(source.files.values()))
    known = next((adapter for adapter in adapters if adapter.base), None)
    recorded = known.base if known else features.base
    return resolve_base_model(known.folder if known else features.path, recorded, None, model, revision)[0]


def _record(
    source: "FeatureSet", adapters: "list[Adapter]", scores: list[Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    from osrm_cli.storage import hub, provenance

    record = provenance.make_record("diagnose", settings, [*source.paths, *scores], base=source.base)
    read = [{"path": a.source, "commit": hub.commit_of(a.folder), "sha256": a.sha256()} for a in adapters]
    return {**record, "inputs": record["inputs"] + read}


def _compared(source: "FeatureSet", energy: float, console: Console) -> "list[LayerGroup]":
    from osrm_cli.diagnosis.feature_overlap import measure_overlap

    groups = []
    with console.progress("diagnose features", len(source.groups()), "inputs") as advance:
        for group in measure_overlap(source, energy):
            groups.append(group)
            advance(1)
    return groups


def _trained(
    adapters: "list[Adapter]",
    source: "FeatureSet",
    base: Path,
    merges: list[Any],
    record: Mapping[str, Any],
    console: Console,
) -> "AdapterDiagnosis":
    from osrm_cli.diagnosis.adapter_origin import trace_initialization
    from osrm_cli.diagnosis.interference import measure_interference
    from osrm_cli.diagnosis.write import AdapterDiagnosis

    digests = {task: entry["sha256"] for task, entry in zip(source.files, record["inputs"], strict=False)}
    layers = len({layer for adapter in adapters for layer in adapter.layers})
    with console.progress("diagnose adapters", layers, "layers") as advance:
        found = measure_interference(adapters, source, base, advance)
    traced = {adapter.name: trace_initialization(adapter, source, digests) for adapter in adapters}
    return AdapterDiagnosis(found, traced, merges)


def _text(found: Mapping[str, Any]) -> Any:
    from rich.console import Group

    parts: list[Any] = [_tasks(found), *_verdicts(found)]
    if "interference" in found:
        parts += [_matrix(found), _adapters(found), *_predicted(found), *_measured(found)]
    return Group(*parts)


def _tasks(found: Mapping[str, Any]) -> Any:
    short = _shortened(group["layers"][0] for group in found["groups"])
    made = table(
        "task", "tokens", "effective rank", "room", "gain", "least room", "most room", title="Features (layers' means)"
    )
    for task, row in found["tasks"].items():
        ends = [f"{short[row[end]['layer']]} {row[end]['free']:.1%}" for end in ("least", "most")]
        gain = "-" if row["gain"] is None else f"{row['gain']:.1f}"
        made.add_row(task, str(row["tokens"]), f"{row['effective_rank']:.0f}", f"{row['free']:.1%}", gain, *ends)
    return made


def _verdicts(found: Mapping[str, Any]) -> Iterable[str]:
    groups = {helps: [t for t, row in found["tasks"].items() if row["helps"] is helps] for helps in (True, False, None)}
    texts = {
        True: "A start that keeps off the others can help: it still hears the task well.",
        False: "A start that keeps off the others can hardly help: it hears the task little better than the others.",
        None: "Whether a start can help cannot be told from these features.",
    }
    yield from (f"{', '.join(tasks)}: {texts[helps]}" for helps, tasks in groups.items() if tasks)
    yield "room: own energy outside the others' main space. gain: room over what the others have there themselves.\n"


def _matrix(found: Mapping[str, Any]) -> Any:
    matrix = found["interference"]
    made = table("update \\ inputs", *matrix, title="Energy of the update over the base model's, in percent")
    for task, row in matrix.items():
        made.add_row(task, *(f"{100 * value:.3g}" for value in row.values()))
    return made


def _adapters(found: Mapping[str, Any]) -> Any:
    made = table("adapter", "norm", "over W0's", "start", "drift of A", "start kept", title="Adapters")
    for task, row in found["adapters"].items():
        kept = "-" if row["kept"] is None else f"{row['kept']:.0%} (random {row['chance']:.0%})"
        drift = "-" if row["drift"] is None else f"{row['drift']:.0%}"
        made.add_row(task, f"{row['norm']:.3g}", f"{row['relative_norm']:.2%}", row["objective"] or "-", drift, kept)
    return made


def _predicted(found: Mapping[str, Any]) -> Iterable[str]:
    rows = found["prediction"]["tasks"]
    if len(rows) < 2:
        return
    yield "Predicted, the worst first (what the others do to a task's inputs, over what its own update does):"
    yield ", ".join(f"{row['task']} {_times(row['to_own'])} (most by {row['worst']})" for row in rows)
    pairs = found["prediction"]["pairs"][:3]
    yield "Worst pairs: " + ", ".join(f"{p['update']} on {p['inputs']} {_times(p['to_own'])}" for p in pairs) + "\n"


def _measured(found: Mapping[str, Any]) -> Iterable[str]:
    measured = found["measured"] or {}
    for row in measured.get("merges", ()):
        yield f"{row['scores']}: {_correlation(row)}"
    if measured.get("pairs"):
        yield f"merges of two: {_correlation(measured['pairs'])}"


def _correlation(row: Mapping[str, Any]) -> str:
    if row["rho"] is None:
        return f"too few or equal points for a rank correlation (n {row['n']})"
    found = f"rank correlation of prediction and drop {row['rho']:+.2f} (n {row['n']}, p {row['p']:.2g})"
    own = row["to_own"]
    return found if own["rho"] is None else f"{found}; over the own energy {own['rho']:+.2f} (p {own['p']:.2g})"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.2g}"


def _shortened(layers: Iterable[str]) -> dict[str, str]:
    """The layers' names without what they share at both ends."""
    parts = {name: name.split(".") for name in layers}
    if len(parts) < 2:
        return {name: name for name in parts}
    head = _shared(parts.values())
    tail = _shared(name[:head:-1] for name in parts.values())
    return {name: ".".join(split[head : len(split) - tail]) for name, split in parts.items()}


def _shared(names: Iterable[Sequence[str]]) -> int:
    """How many parts names begin with alike."""
    return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))))
