"""``osrm train``: starts/<task>/ -> adapters/<task>/."""

import itertools
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console
from osrm_cli.cli.options import Device, DType, Freeze, Head, Unit
from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    import torch

    from osrm_cli.adapters.adapter import Adapter
    from osrm_cli.features.features_file import Features
    from osrm_cli.storage.provenance import Base
    from osrm_cli.tasks.task import TaskSplit
    from osrm_cli.training.fit import Outcome, Recipe


def train(
    starts: Annotated[list[Path], typer.Argument(help="Adapter folders to fine-tune, each on its own task.")],
    data: options.RecordedData = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    lr: Annotated[float, typer.Option("--lr", min=0, help="Peak learning rate.")] = 4e-4,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training examples.")] = 3,
    batch_size: options.BatchSize = 16,
    max_length: options.MaxLength = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Training examples; a seeded choice. Default: all.", show_default=False),
    ] = None,
    dev_limit: Annotated[
        int | None,
        typer.Option("--dev-limit", min=1, help="Dev examples; the first ones. Default: all.", show_default=False),
    ] = None,
    freeze: Annotated[
        Freeze | None, typer.Option("--freeze", help="Train only the other factor.", show_default=False)
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", min=0, max=0.9, help="Of the base model. Default: its own.", show_default=False),
    ] = None,
    head: Annotated[
        Head,
        typer.Option("--head", help="A new head begins fitted to the untrained model's output, or fresh (random)."),
    ] = Head.FITTED,
    interference_penalty: Annotated[
        float | None,
        typer.Option(
            "--interference-penalty",
            metavar="MU",
            min=0,
            help="Cost of what the update does to the other tasks' inputs; reads --features.",
            show_default=False,
        ),
    ] = None,
    penalty_unit: Annotated[
        Unit, typer.Option("--penalty-unit", help="Measure it by the base model's energy, or by the update's own.")
    ] = Unit.BASE,
    features: options.FeaturesFolder = Path("features"),
    keep_best: Annotated[bool, typer.Option("--keep-best", help="Keep the epoch with the best dev score.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of an unfinished run.")
    ] = False,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.AUTO,
    out: Annotated[Path, typer.Option("--out", help="Folder to write <task>/ to.")] = Path("adapters"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune adapters, each on its own task.

    Example: osrm train starts/mini-mood
    """
    from osrm_cli.models import devices
    from osrm_cli.models import distributed as processes
    from osrm_cli.training.fit import Recipe

    leader = processes.rank() == 0  # under a launcher, one process writes and speaks
    console = Console(json, quiet or not leader)
    where = devices.pick_device(device)
    precision = devices.pick_training_dtype(dtype, where)
    if precision.itemsize == 2 and dtype is DType.FLOAT16:
        raise OsrmError("float16 is too narrow to train in", "use --dtype bfloat16 or float32")
    recipe = Recipe(lr, epochs, batch_size, seed, keep_best, bf16=precision.itemsize == 2, dropout=dropout)
    limits = {"limit": limit, "dev_limit": dev_limit, "max_length": max_length}
    settings = {**asdict(recipe), **limits, "freeze": freeze and str(freeze), "head": str(head)}
    if interference_penalty:
        settings |= {"interference_penalty": interference_penalty, "penalty_unit": str(penalty_unit)}
    jobs = [_job(path, out, overwrite, data, model, revision, features, recipe, settings) for path in starts]
    for first, second in itertools.combinations(jobs, 2):
        if first.path == second.path:
            raise OsrmError(f"{first.given} and {second.given} would both be written to {first.path}")
    if dry_run:
        plan = [f"would write {job.path}: {len(job.train.examples)} examples of {job.train.task.name}" for job in jobs]
        console.result({"would_write": [str(job.path) for job in jobs]}, "\n".join(plan))
        return
    reports = {job.start.name: _run(job, where, leader, resume, overwrite, console) for job in jobs}
    if leader:
        console.result({"adapters": reports}, "\n".join(map(_line, reports.values())))


def _line(report: dict[str, Any]) -> str:
    return f"{report['path']}  dev {report['dev']['headline']:.2f}, drift of A {report['drift']['overall']:.1%}"


@dataclass(frozen=True)
class _Job:
    """One adapter to train, everything about it checked."""

    given: Path
    start: "Adapter"
    source: str
    train: "TaskSplit"
    dev: "TaskSplit"
    folder: Path
    base: "Base"
    recipe: "Recipe"
    settings: dict[str, Any]
    path: Path
    features: "dict[str, Features]"

    @property
    def work(self) -> Path:
        """Where checkpoints lie until the run is done."""
        return self.path.parent / f".{self.path.name}.training"

    def facts(self) -> dict[str, Any]:
        """What ``osrm.json`` says of the run."""
        from osrm_cli.storage import provenance

        data = {"source": self.source, "sha256": self.train.sha256}
        return provenance.record(
            "train",
            self.settings,
            [self.start.folder, *(path for read in self.features.values() for path in read.files)],
            base=self.base,
            task=self.train.task.to_dict(),
            data=data,
            start=self.start.facts.get("settings"),
        )


def _job(
    given: Path,
    out: Path,
    overwrite: bool,
    data: str | None,
    model: str | None,
    revision: str | None,
    features: Path,
    recipe: "Recipe",
    settings: dict[str, Any],
) -> _Job:
    from osrm_cli.adapters.adapter import Adapter
    from osrm_cli.models import base_model as bases
    from osrm_cli.models import classifier as base_model
    from osrm_cli.storage import atomic, provenance
    from osrm_cli.tasks.loading import draw_examples, load_split
    from osrm_cli.training import interference_penalty as penalty

    start = Adapter.open(given)
    path = out / Path(start.name).name
    atomic.refuse_existing(path, overwrite)
    source = data or (start.facts.get("data") or {}).get("source") or "hub"
    train = load_split(start.name, source, "train")
    if settings["limit"]:
        train = draw_examples(train, settings["limit"], recipe.seed)
    dev = load_split(start.name, source, "dev", settings["dev_limit"])
    folder, base = bases.of_artifact(given, start.base, start.config.base_model, model, revision)
    length = settings["max_length"] or train.task.max_length or options.MAX_LENGTH
    base_model.check_length(folder, length)
    files = penalty.open_features(features, start.name, settings["penalty_unit"]) if "penalty_unit" in settings else {}
    provenance.same_base({path: base, **{held.path: held.base for held in files.values()}})
    return _Job(given, start, source, train, dev, folder, base, recipe, {**settings, "max_length": length}, path, files)


def _run(
    job: _Job, where: "torch.device", leader: bool, resume: bool, overwrite: bool, console: Console
) -> dict[str, Any]:
    import torch

    from osrm_cli.models import classifier as base_model
    from osrm_cli.models import distributed as processes
    from osrm_cli.training import checkpoints as unfinished
    from osrm_cli.training import fit as training
    from osrm_cli.training import head_init, trainer
    from osrm_cli.training import interference_penalty as penalty
    from osrm_cli.training import peft_model as adapting

    facts, freeze = job.facts(), job.settings["freeze"]
    if leader:
        unfinished.claim(job.work, facts, resume, overwrite)
    tokenizer = base_model.load_tokenizer(job.folder)
    classifier = base_model.load_classifier(
        job.folder, job.train.task.num_labels, tokenizer, torch.float32, job.recipe.seed, job.recipe.dropout
    )
    model = adapting.adapt(classifier, job.start, freeze)
    if freeze == "B" and not any(job.start.factors(layer).B.any() for layer in job.start.layers):
        console.warn(f"{job.given}: B is zero and stays frozen, so that only the head is trained")
    cost = penalty.from_features(model, job.features, job.start.name, job.settings) if job.features else None
    if job.recipe.bf16:  # the penalty has read the exact weights
        trainer.lean_bfloat16(model, where)
    lesson = training.Lesson.of(tokenizer, job.train, job.dev, job.settings["max_length"])
    checkpoint = unfinished.newest_checkpoint(job.work) if resume else None
    if job.settings["head"] == Head.FITTED and not job.start.heads() and not checkpoint:
        head_init.fit_untrained(model, tokenizer, lesson.task, lesson.train, where, job.recipe.bf16)
    steps = lesson.steps(job.recipe, processes.count())
    try:
        with console.progress(f"train {job.start.name}", steps, "steps") as advance:
            outcome = training.fit(model, tokenizer, lesson, job.recipe, job.work, where, checkpoint, advance, cost)
    except OsrmError:  # it diverged: there is nothing to go on from
        if leader:
            shutil.rmtree(job.work)
        raise
    report = {"path": str(job.path), "dev": outcome.scores, "drift": asdict(adapting.drift(model, job.start))}
    if leader:
        _write(job, model, classifier.heads, outcome, report, facts, overwrite)
        shutil.rmtree(job.work)
    return report


def _write(
    job: _Job,
    model: Any,
    heads: list[str],
    outcome: "Outcome",
    report: dict[str, Any],
    facts: dict[str, Any],
    overwrite: bool,
) -> None:
    from osrm_cli.storage import atomic, provenance
    from osrm_cli.training import fit as training
    from osrm_cli.training import peft_model as adapting

    found = asdict(outcome)
    dev = {
        "split": job.dev.split,
        "sha256": job.dev.sha256,
        "examples": len(job.dev.examples),
        "max_length": job.settings["max_length"],
        "dtype": "bfloat16" if job.recipe.bf16 else "float32",
        "scores": found.pop("scores"),
    }
    log = {"dev": dev, "drift": report["drift"], **found}
    with atomic.write_folder(job.path, overwrite) as stage:
        adapting.save(model, job.start, job.base, heads, stage)
        training.draw_losses(outcome, job.start.name, stage / "loss.png")
        (stage / "training.json").write_text(provenance.dumps(log), encoding="utf-8")
        provenance.write(stage, facts)
