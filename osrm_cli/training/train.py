"""Fine-tune adapters, each on its own task: ``starts/<task>/`` -> ``adapters/<task>/``."""

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.errors import OsrmError, check_number
from osrm_cli.models.classifier import LoadedModel, load_classifier, load_tokenizer
from osrm_cli.models.devices import pick_device, quantization_settings
from osrm_cli.models.distributed import process_count, process_rank
from osrm_cli.models.text.completions import CompletionTokenizer, chat_template_record
from osrm_cli.models.text.language_model import load_language_model
from osrm_cli.models.token_batches import check_model_vocabulary
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, provenance
from osrm_cli.training.checkpoints import newest_training_checkpoint, prepare_checkpoint_folder
from osrm_cli.training.fit import EncodedTask, TrainingConfig, TrainingResult, draw_training_curves, fit_adapter
from osrm_cli.training.full_update import to_full_training_start
from osrm_cli.training.head_init import fit_new_head
from osrm_cli.training.interference_penalty import penalty_from_features
from osrm_cli.training.trainable_adapter import measure_adapter_drift, save_trained_adapter, to_trainable_peft_model
from osrm_cli.training.trainer import DivergenceError, frozen_weights_to_bfloat16, pick_training_dtype
from osrm_cli.training.training_run import TrainingRequest, TrainingRun


@dataclass(frozen=True)
class TrainedAdapters:
    """Result of ``train_adapters``.

    Attributes:
        paths: Output folder of each adapter by task; not written under ``dry_run``.
        examples: Number of training examples by task.
        reports: By task, ``path``, ``dev`` scores and ``drift`` of A, with ``full`` in how many
            ``directions`` the layers' weights were trained; empty under ``dry_run``.
        warnings: Warnings about data and training.
    """

    paths: Mapping[str, Path]
    examples: Mapping[str, int]
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def train_adapter(start: Path | str, **options: Any) -> dict[str, Any]:
    """Fine-tune one initialized adapter on its task.

    Args:
        start: The adapter folder, as ``initialize_adapters`` writes it.
        **options: See ``train_adapters``.

    Returns:
        ``path``, ``dev`` scores and ``drift`` of A.

    Raises:
        OsrmError: If data, base model or features are missing or do not fit, or the training diverges.

    Example:
        >>> from osrm_cli import train_adapter
        >>> train_adapter("starts/mini-mood", epochs=1)["dev"]["headline"]
        72.0
    """
    (report,) = train_adapters([start], **options).reports.values()
    return report


def train_adapters(
    starts: Sequence[Path | str],
    *,
    data: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    lr: float = 4e-4,
    epochs: float = 3,
    batch_size: int = 16,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    skip_long: bool = False,
    limit: int | None = None,
    dev_limit: int | None = None,
    freeze: str | None = None,
    dropout: float | None = None,
    head: str = "fitted",
    interference_penalty: float | None = None,
    penalty_unit: str = "base",
    full: bool = False,
    project: bool = False,
    project_energy: float = 0.7,
    features: Path | str = "features",
    keep_best: bool = False,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    out: Path | str = "adapters",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> TrainedAdapters:
    """Fine-tune initialized adapters, each on its own task.

    Args:
        starts: Folders of initialized adapters.
        data: ``hub``, ``mini`` or a folder; by default the data that each adapter was initialized for.
        model: The base model, if it has moved.
        revision: Its revision.
        lr: Peak learning rate.
        epochs: Passes over the training examples.
        batch_size: Examples per device and step.
        gradient_accumulation: Batches whose gradients are added up before a step.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, a third more time.
        max_length: Tokens per example; by default the task's, else 128, for text 512.
        skip_long: Leave out rows whose completion exceeds ``max_length``, instead of an error.
        limit: Number of training examples, a seeded draw; all by default.
        dev_limit: Number of dev examples, the first ones; all by default.
        freeze: ``A`` or ``B`` to train only the other factor.
        dropout: Dropout rate of the base model; its own by default.
        head: ``fitted`` or ``fresh``: initialization of a new head.
        interference_penalty: Weight of the update's energy on the other tasks' inputs in the loss, 0 for none; by
            default 3 for a start of the objective ``gevd``, 10 if it is answered with text, and 0 for others.
        penalty_unit: ``base`` or ``own``: reference energy, the base model's or the update's own.
        full: Train the layers' whole weights; the result is an adapter of their full rank.
        project: With ``full``, train outside of the principal subspace of the other tasks' inputs.
        project_energy: Share of their energy in that subspace.
        features: Folder of features files for the penalty and the projection.
        keep_best: Keep the epoch with the best dev score.
        resume: Resume an unfinished run from its last checkpoint.
        seed: Seed of the order of the examples, of dropout and of the head.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        quantize: ``4bit`` to hold the base model of text tasks in 4 bits, through bitsandbytes.
        out: Folder to write ``<task>/`` to.
        overwrite: Replace adapters that exist.
        dry_run: Check everything and write nothing.
        progress: Shows progress bars.

    Raises:
        OsrmError: If data, base model or features are missing or do not fit, or a training diverges.

    Example:
        >>> from osrm_cli import train_adapters
        >>> train_adapters(["starts/mini-inference"], epochs=1).paths["mini-inference"]
        PosixPath('adapters/mini-inference')
    """
    torch_device = pick_device(device)
    torch_dtype = pick_training_dtype(dtype, torch_device)
    if torch_dtype == torch.float16:
        raise OsrmError("float16 is too narrow to train in", "use --dtype bfloat16 or float32")
    if project and not full:
        raise OsrmError("--project is for whole weights", "add --full; an adapter's start is chosen by osrm init")
    if full and quantize:
        raise OsrmError("--full trains whole weights, which 4 bits cannot hold", "leave out --quantize")
    if penalty_unit == "own" and interference_penalty is None:
        raise OsrmError("--penalty-unit own has no default weight", "give --interference-penalty, such as 0.1")
    if full and freeze:
        raise OsrmError("--full trains whole weights, which have no factor to freeze", "leave out --freeze")
    for option, value in (("lr", lr), ("interference-penalty", interference_penalty or 0)):
        check_number(option, value, 0)
    check_number("epochs", epochs, 0, 10_000)
    bf16 = torch_dtype.itemsize == 2
    config = TrainingConfig(
        lr, epochs, batch_size, seed, keep_best, bf16, dropout, gradient_accumulation, gradient_checkpointing
    )
    limits = {"limit": limit, "dev_limit": dev_limit, "max_length": max_length}
    settings = {**asdict(config), **limits, "freeze": freeze and str(freeze), "head": str(head)}
    settings |= {"skip_long": skip_long}
    if quantize:
        settings |= {"quantize": str(quantize)}
    if full:
        settings |= {"full": True, "freeze": "A", **({"project_energy": project_energy} if project else {})}
    request = TrainingRequest(
        out=Path(out),
        overwrite=overwrite,
        data=data,
        model=model,
        revision=revision,
        features=Path(features),
        config=config,
        settings=settings,
        penalty=0.0 if full and interference_penalty is None else interference_penalty,
        penalty_unit=str(penalty_unit),
    )
    runs = [request.prepare(Path(start)) for start in starts]
    for first, second in itertools.combinations(runs, 2):
        if first.path == second.path:
            raise OsrmError(f"{first.origin} and {second.origin} would both be written to {first.path}")
    paths = {run.start.name: run.path for run in runs}
    trained = TrainedAdapters(paths, {run.start.name: len(run.train.examples) for run in runs})
    for run in runs:
        trained.warnings.extend(dict.fromkeys([*run.train.warnings, *run.dev.warnings, *run.warnings]))
    if not dry_run:
        for run in runs:
            trained.reports[run.start.name] = _train_one_adapter(
                run, torch_device, resume, overwrite, progress, trained.warnings
            )
    return trained


def _train_one_adapter(
    run: TrainingRun, device: torch.device, resume: bool, overwrite: bool, progress: Progress, warnings: list[str]
) -> dict[str, Any]:
    record, config, freeze = run.make_record(), run.config, run.settings["freeze"]
    is_first = process_rank() == 0  # under a launcher, one process writes
    if run.settings.get("full"):
        others = run.features if "project_energy" in run.settings else None
        run = replace(run, start=to_full_training_start(run.start, others, run.settings.get("project_energy", 0)))
    tokenizer = load_tokenizer(run.base_dir)
    loaded = _load_base_to_train(run, tokenizer, device)
    model = to_trainable_peft_model(loaded, run.start, freeze)
    if freeze == "B" and not any(run.start.lora_factors(layer).B.any() for layer in run.start.layers):
        rest = "only the head" if loaded.heads else "nothing"
        warnings.append(f"{run.origin}: B is zero and stays frozen, so that {rest} is trained")
    penalty = None
    if run.features and "interference_penalty" in run.settings:
        penalty = penalty_from_features(model, run.features, run.start.name, run.settings)
    if config.bf16:  # the penalty has read the exact weights
        frozen_weights_to_bfloat16(model, device)
    encoded = _encode_training_task(run, tokenizer, loaded.model.config.is_encoder_decoder, warnings)
    check_model_vocabulary(tokenizer, [*encoded.train, *encoded.dev], model, run.base_dir)
    record |= {"template": chat_template_record(tokenizer)} if run.train.task.is_text else {}
    if is_first:
        prepare_checkpoint_folder(run.checkpoint_folder, record, resume, overwrite)
    checkpoint = newest_training_checkpoint(run.checkpoint_folder) if resume else None
    unfitted = None
    if loaded.heads and run.settings["head"] == "fitted" and not run.start.head_tensors() and not checkpoint:
        unfitted = fit_new_head(model, tokenizer, encoded.task, encoded.train, device, config.bf16, config.seed)
        if unfitted:
            warnings.append(f"{run.start.name}: {unfitted}; a merge will cost this task more")
    try:
        with progress(f"train {run.start.name}", encoded.steps(config, process_count()), "steps") as advance:
            result = fit_adapter(
                model, tokenizer, encoded, config, run.checkpoint_folder, device, checkpoint, advance, penalty
            )
    except DivergenceError:
        if is_first:
            shutil.rmtree(run.checkpoint_folder)
        raise
    drift = asdict(measure_adapter_drift(model, run.start))
    if is_first:
        log = _make_training_log(run, result, drift) | ({"head": unfitted} if unfitted else {})
        with atomic.write_folder(run.path, overwrite) as stage:
            save_trained_adapter(model, run.start, run.base, loaded.heads, stage)
            draw_training_curves(result, run.start.name, stage / "loss.png")
            (stage / "training.json").write_text(provenance.to_json(log), encoding="utf-8")
            provenance.write_record(stage, record)
            provenance.write_digests(stage)
        shutil.rmtree(run.checkpoint_folder)
    trained = {layer.rank for layer in run.start.layers.values()} if run.settings.get("full") else set()
    directions = {"directions": {"least": min(trained), "most": max(trained)}} if trained else {}
    return {"path": str(run.path), "dev": result.scores, "drift": drift, **directions}


def _load_base_to_train(run: TrainingRun, tokenizer: Any, device: torch.device) -> LoadedModel:
    """The base model as the task needs it."""
    task, config = run.train.task, run.config
    if task.is_text:
        computes_in = torch.bfloat16 if config.bf16 else torch.float32
        settings = quantization_settings(device, computes_in) if "quantize" in run.settings else {}
        return load_language_model(run.base_dir, tokenizer, torch.float32, config.dropout, settings=settings)
    return load_classifier(run.base_dir, task.num_labels, tokenizer, torch.float32, config.seed, config.dropout)


def _encode_training_task(run: TrainingRun, tokenizer: Any, encoder_decoder: bool, warnings: list[str]) -> EncodedTask:
    length = run.settings["max_length"]
    if not run.train.task.is_text:
        return EncodedTask.of(tokenizer, run.train, run.dev, length)
    completions = CompletionTokenizer(tokenizer, encoder_decoder, length, run.settings["skip_long"])
    encoded = EncodedTask.of_text(completions, run.train, run.dev)
    warnings.extend(completions.warnings)
    return encoded


def _make_training_log(run: TrainingRun, result: TrainingResult, drift: Mapping[str, Any]) -> dict[str, Any]:
    """``training.json``: dev scores, drift of A, one row per epoch, and the losses."""
    fields = asdict(result)
    dev = {
        "split": run.dev.split,
        "sha256": run.dev.sha256,
        "examples": len(run.dev.examples),
        "max_length": run.settings["max_length"],
        "dtype": "bfloat16" if run.config.bf16 else "float32",
        "scores": fields.pop("scores"),
    }
    return {"dev": dev, "drift": drift, **fields}
