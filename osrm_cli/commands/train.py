"""``osrm train``: starts/<task>/ -> adapters/<task>/."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.commands import options
from osrm_cli.commands.options import Device, DType, Freeze
from osrm_cli.console import Console
from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    import torch

    from osrm_cli.artifacts.adapter import Adapter
    from osrm_cli.artifacts.provenance import Base
    from osrm_cli.language.tasks import Data
    from osrm_cli.language.training import Outcome, Recipe


def train(
    starts: Annotated[list[Path], typer.Argument(help="Adapter folders to fine-tune, each on its own task.")],
    data: options.RecordedData = None,
    model: options.RecordedModel = None,
    revision: options.Revision = None,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 4e-4,
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
    from osrm_cli.artifacts import atomic
    from osrm_cli.artifacts.adapter import Adapter
    from osrm_cli.language import base_model, tasks
    from osrm_cli.language.training import Recipe

    console = Console(json, quiet)
    where = base_model.pick_device(device)
    bf16 = base_model.pick_dtype(dtype, where).itemsize == 2
    recipe = Recipe(lr=lr, epochs=epochs, batch_size=batch_size, seed=seed, keep_best=keep_best, bf16=bf16)
    jobs = []
    for path in starts:
        start = Adapter.open(path)
        atomic.refuse_existing(out / start.name, overwrite)
        source = data or (start.facts.get("data") or {}).get("source") or "hub"
        chosen = tasks.load(start.name, source, "train")
        chosen = tasks.sample(chosen, limit, seed) if limit else chosen
        dev = tasks.load(start.name, source, "dev", dev_limit)
        folder, base = base_model.of_artifact(path, start.base, start.config.base_model, model, revision)
        length = max_length or chosen.task.max_length or options.MAX_LENGTH
        settings = {**asdict(recipe), "max_length": length, "freeze": freeze, "limit": limit, "dev_limit": dev_limit}
        jobs.append(_Job(path, start, source, chosen, dev, folder, base, recipe, settings, out / start.name))
    if dry_run:
        plan = [f"would write {job.path}: {len(job.train.examples)} examples of {job.train.task.name}" for job in jobs]
        console.result({"would_write": [str(job.path) for job in jobs]}, "\n".join(plan))
        return
    reports = {job.start.name: _run(job, where, resume, overwrite, console) for job in jobs}
    lines = [
        f"{r['path']}  dev {r['dev']['headline']:.2f}, drift of A {r['drift']['overall']:.1%}" for r in reports.values()
    ]
    console.result({"adapters": reports}, "\n".join(lines))


@dataclass(frozen=True)
class _Job:
    """One adapter to train, everything about it checked."""

    given: Path
    start: "Adapter"
    source: str
    train: "Data"
    dev: "Data"
    folder: Path
    base: "Base"
    recipe: "Recipe"
    settings: dict[str, Any]
    path: Path

    @property
    def work(self) -> Path:
        """Where checkpoints lie until the run is done."""
        return self.path.parent / f".{self.path.name}.training"


def _run(job: _Job, where: "torch.device", resume: bool, overwrite: bool, console: Console) -> dict[str, Any]:
    import torch

    from osrm_cli.artifacts import provenance
    from osrm_cli.language import base_model, batches, training

    facts = provenance.record(
        "train",
        job.settings,
        [job.given],
        base=job.base,
        task=job.train.task.to_dict(),
        data={"source": job.source, "sha256": job.train.sha256},
    )
    leader = os.environ.get("RANK", "0") == "0"  # under a launcher, one process writes
    if leader:
        _open_work(job.work, facts, resume, overwrite)
    tokenizer = base_model.load_tokenizer(job.folder)
    classifier = base_model.load_classifier(
        job.folder, job.train.task.num_labels, tokenizer, torch.float32, job.recipe.seed
    )
    model = training.adapt(classifier, job.start, job.settings["freeze"])
    train, dev = (
        training.with_labels(
            batches.tokenise(tokenizer, data.examples, job.settings["max_length"]), data.examples, data.task
        )
        for data in (job.train, job.dev)
    )
    steps = training.steps(len(train), job.recipe)
    with console.progress(f"train {job.start.name}", steps, "steps") as advance:
        outcome = training.fit(
            model, tokenizer, job.train.task, train, dev, job.recipe, job.work, where, resume, advance
        )
    report = {"path": str(job.path), "dev": outcome.scores, "drift": asdict(training.drift(model, job.start))}
    if leader:
        _write(job, model, classifier.heads, outcome, report, facts, overwrite)
        shutil.rmtree(job.work)
    return report


def _open_work(work: Path, facts: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder for checkpoints, or check that the one found belongs to the same run."""
    from osrm_cli.artifacts import provenance

    if work.exists() and not resume and not overwrite:
        raise OsrmError(f"{work} holds an unfinished run", "go on with --resume, or start over with --overwrite")
    if resume and work.exists():
        if provenance.read(work) != facts:
            raise OsrmError(
                f"{work} holds an unfinished run with other settings", "give the same options, or --overwrite"
            )
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    provenance.write(work, facts)


def _write(
    job: _Job,
    model: Any,
    heads: list[str],
    outcome: "Outcome",
    report: dict[str, Any],
    facts: dict[str, Any],
    overwrite: bool,
) -> None:
    from osrm_cli.artifacts import atomic, provenance
    from osrm_cli.language import training

    dev = {
        "split": job.dev.split,
        "sha256": job.dev.sha256,
        "examples": len(job.dev.examples),
        "scores": outcome.scores,
    }
    log = {**report, "dev": dev, "epochs": outcome.epochs, "best_epoch": outcome.best_epoch, "losses": outcome.losses}
    with atomic.write_folder(job.path, overwrite) as stage:
        training.save(model, job.start, job.base, heads, stage)
        training.draw_losses(outcome, job.start.name, stage / "loss.png")
        (stage / "training.json").write_text(provenance.dumps({k: v for k, v in log.items() if k != "path"}), "utf-8")
        provenance.write(stage, facts)
