"""``osrm eval``: merged/ -> merged/scores.json."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.cli.options import Device, DType
from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from osrm_cli.evaluation.classifiers import TaskClassifier
    from osrm_cli.evaluation.scores import TaskScore
    from osrm_cli.tasks.task import TaskSplit


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A merged folder, or any adapter folder with a head.")] = Path(
        "merged"
    ),
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task to score; repeat for more. Default: all.")
    ] = None,
    data: options.RecordedData = None,
    split: Annotated[str, typer.Option("--split", help="Split to score on.")] = "dev",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Examples per task; the first ones. Default: all.", show_default=False),
    ] = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Keep every prediction, and the labels.")] = False,
    single: Annotated[bool, typer.Option("--single/--no-single", help="Score the single adapters beside.")] = True,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 64,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.FLOAT32,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: FOLDER/scores.json.", show_default=False)
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score each task, beside its single adapter.

    Example: osrm eval merged
    """
    from osrm_cli.evaluation import classifiers, scores
    from osrm_cli.models import devices
    from osrm_cli.models.base_model import find_base_model, resolve_base_model
    from osrm_cli.models.classifier import check_max_length
    from osrm_cli.storage import atomic, provenance

    console = Console(json, quiet)
    path = out or folder / scores.NAME
    atomic.refuse_existing(path, overwrite)
    found = _chosen(classifiers.open_classifiers(folder), task, folder)
    sets = {name: _sets(held, data, split, limit) for name, held in found.items()}
    lengths = {name: max_length or _length(held, sets[name][0]) for name, held in found.items()}
    first = next(iter(found.values()))
    if first.form == "model":
        place, base = find_base_model(str(folder)), first.base
    else:
        place, base = resolve_base_model(folder, first.base, first.base_name, model, revision)
    check_max_length(place, max(lengths.values()))
    if dry_run:
        console.result({"would_write": [str(path)]}, f"would write {path}: {', '.join(found)}")
        return
    where = devices.pick_device(device)
    bench = _Bench(place, where, devices.pick_dtype(dtype, where), batch_size, console)
    results = {}
    for name, held in found.items():
        score = bench.score(held, sets[name], lengths[name])
        if single:
            own = held.folder == held.root
            score = replace(score, single=score.headline if own else _alone(bench, held, sets[name][0], lengths[name]))
        results[name] = score
    precision = str(bench.dtype).removeprefix("torch.")
    settings = {"split": split, "limit": limit, "max_length": lengths, "dtype": precision}
    record = provenance.make_record(
        "eval", settings, sorted(folder.rglob("*.safetensors")), base=base, **scores.made(folder)
    )
    facts = scores.summary(results) | (scores.answers(results) if predictions else {})
    with atomic.write_file(path, overwrite) as stage:
        stage.write_text(provenance.to_json({**record, **facts}), encoding="utf-8")
    if first.form == "task-aware":
        console.note("Each task was scored with its own mask: this is not one model.")
    console.result({"path": str(path), **scores.summary(results)}, _table(results, split))


def _chosen(found: "dict[str, TaskClassifier]", names: list[str] | None, folder: Path) -> "dict[str, TaskClassifier]":
    for name in names or []:
        if name not in found:
            raise OsrmError(f"{folder} holds no task '{name}'", f"it holds: {', '.join(found)}")
    return {name: held for name, held in found.items() if not names or name in names}


def _sets(held: "TaskClassifier", data: str | None, split: str, limit: int | None) -> "list[TaskSplit]":
    """The split's examples; two sets where the task has a matched and a mismatched one."""
    from osrm_cli.tasks import loading

    source = data or held.data or "hub"
    splits = loading.list_splits(held.task, source)
    pair = [name for name in (f"{split}_matched", f"{split}_mismatched") if name in splits]
    return [loading.load_split(held.task, source, name, limit) for name in pair or [split]]


def _length(held: "TaskClassifier", data: "TaskSplit") -> int:
    """Tokens an example is cut to: as the single adapter was scored, else as the task says."""
    return held.max_length or data.task.max_length or options.MAX_LENGTH


@dataclass
class _Bench:
    """One base model, on which one classifier after the other is scored."""

    place: Path
    device: "torch.device"
    dtype: "torch.dtype"
    batch_size: int
    console: Console

    def __post_init__(self) -> None:
        from osrm_cli.models.classifier import load_classifier, load_tokenizer

        self.tokenizer = load_tokenizer(self.place)
        self.model = load_classifier(self.place, 2, self.tokenizer, self.dtype, 0).model
        whole: torch.nn.Module = self.model  # transformers' own method "to" is not typed
        whole.to(self.device)

    def score(self, held: "TaskClassifier", sets: "list[TaskSplit]", length: int) -> "TaskScore":
        """Score one task on one set of examples, or two."""
        from osrm_cli.evaluation import classifiers
        from osrm_cli.evaluation.scores import TaskScore, rounded
        from osrm_cli.tasks import metrics

        task = sets[0].task
        with classifiers.attach_classifier(self.model, held, task.num_labels) as model:
            answers = [self._answers(model, data, length) for data in sets]
        found = [metrics.compute_scores(task, given, data.labels) for given, data in zip(answers, sets, strict=True)]
        named = {name: value for data, rows in zip(sets, found, strict=True) for name, value in _named(data, rows)}
        return TaskScore(
            named,
            metrics.primary_score(task, found[0]),
            None,
            sum(len(data.examples) for data in sets),
            sets[0].sha256,
            rounded(answers[0].tolist()),
            tuple(sets[0].labels),
        )

    def _answers(self, model: Any, data: "TaskSplit", length: int) -> Any:
        """Classes or scores, one per example."""
        from osrm_cli.models.backbone import compute_logits
        from osrm_cli.models.batching import tokenize_examples
        from osrm_cli.tasks import metrics

        encodings = tokenize_examples(self.tokenizer, data.examples, length)
        with self.console.progress(f"eval {data.task.name}", len(encodings), "examples") as advance:
            logits = compute_logits(model, encodings, self.tokenizer, self.device, self.batch_size, advance)
        return metrics.predictions_from_logits(data.task, logits.numpy())


def _alone(bench: _Bench, merged: "TaskClassifier", data: "TaskSplit", length: int) -> float | None:
    """The single adapter's headline: as recorded if that was on the same examples, else measured if it is there."""
    from osrm_cli.adapters.adapter import Adapter
    from osrm_cli.evaluation import classifiers
    from osrm_cli.models.base_model import resolve_base_model
    from osrm_cli.tasks import metrics

    source = merged.single_adapter
    recorded = source.get("dev") or {}
    same = {"sha256": data.sha256, "max_length": length, "dtype": str(bench.dtype).removeprefix("torch.")}
    if all(recorded.get(name, value) == value for name, value in same.items()) and "sha256" in recorded:
        return metrics.primary_score(data.task, recorded["scores"])
    path = Path(source.get("path") or "")
    if not source or not (path / "adapter_config.json").is_file():
        bench.console.note(f"{merged.task}: the single adapter is not at hand, so it has no score beside it")
        return None
    if Adapter.open(path).sha256() != source.get("sha256"):
        bench.console.note(f"{merged.task}: {path} has changed since it was merged, so it has no score beside it")
        return None
    held = next(iter(classifiers.open_classifiers(path).values()))
    if merged.form == "model":  # the bench's weights are the merged ones
        bench = replace(bench, place=resolve_base_model(path, held.base, held.base_name, None, None)[0])
    return bench.score(held, [data], length).headline


def _named(data: "TaskSplit", found: dict[str, float]) -> "Iterator[tuple[str, float]]":
    suffix = "_mismatched" if data.split.endswith("_mismatched") else ""
    return ((name + suffix, value) for name, value in found.items())


def _table(results: "dict[str, TaskScore]", split: str) -> Any:
    from osrm_cli.evaluation import scores

    made = table("task", "single", "merged", "ratio", "examples", "metrics", title=f"Scores ({split})")
    facts = scores.summary(results)
    for name, row in facts["tasks"].items():
        metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in row["metrics"].items())
        made.add_row(
            name, _cell(row["single"]), _cell(row["headline"]), _percent(row["ratio"]), str(row["examples"]), metrics
        )
    average = facts["average"]
    made.add_section()
    made.add_row("average", _cell(average["single"]), _cell(average["headline"]), _percent(average["ratio"]), "", "")
    return made


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
