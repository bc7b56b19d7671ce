"""``osrm collect``: text -> features/<task>.safetensors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osrm_cli.commands import options
from osrm_cli.commands.options import Device, DType, Pooling
from osrm_cli.console import Console
from osrm_cli.maths import statistics

if TYPE_CHECKING:
    from osrm_cli.language.tasks import Data


def collect(
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task to read; repeat for more. Default: all.")
    ] = None,
    data: options.Data = "hub",
    model: options.Model = "minilm",
    revision: options.Revision = None,
    target_modules: options.TargetModules = None,
    statistic: Annotated[
        list[str] | None,
        typer.Option(
            "--statistic",
            help="What to keep of the features; repeat for more. Default: mean and second-moment.",
            autocompletion=options.completing(statistics.STATISTICS),
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training examples read per task.")] = 100,
    max_length: options.MaxLength = None,
    pooling: Annotated[
        Pooling, typer.Option("--pooling", help="'padded' counts padding as text, as the published code does.")
    ] = Pooling.MASKED,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    device: options.DeviceOption = Device.AUTO,
    dtype: options.DTypeOption = DType.AUTO,
    out: Annotated[Path, typer.Option("--out", help="Folder to write <task>.safetensors to.")] = Path("features"),
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect what a task's inputs look like to each target layer.

    Example: osrm collect --task mini-mood --data mini
    """
    from osrm_cli.artifacts import atomic, provenance, tensors
    from osrm_cli.language import activations, base_model, batches, tasks

    console = Console(json, quiet)
    rows = [statistics.find(name) for name in statistic or ["mean", "second-moment"]]
    names = task or tasks.names(data)
    paths = {name: out / f"{name}.safetensors" for name in names}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    chosen = {name: tasks.sample(tasks.load(name, data, "train"), samples, seed) for name in names}

    folder, base = base_model.locate(model, revision), base_model.identify(model, revision)
    where = base_model.pick_device(device)
    tokenizer = base_model.load_tokenizer(folder)
    classifier = base_model.load_classifier(folder, 1, tokenizer, base_model.pick_dtype(dtype, where), seed)
    target_names = target_modules or base_model.default_targets(classifier.model)
    targets = base_model.find_targets(classifier, target_names)
    network = classifier.model.to(where).eval()
    if dry_run:
        console.result({"would_write": [str(path) for path in paths.values()]}, _plan(paths, chosen, len(targets)))
        return

    padded = pooling is Pooling.PADDED
    written = {}
    for name, path in paths.items():
        length = max_length or chosen[name].task.max_length or options.MAX_LENGTH
        encodings = batches.tokenise(tokenizer, chosen[name].examples, length)
        total = activations.Totals(network, targets, [row.load() for row in rows], padded)
        with console.progress(f"collect {name}", len(encodings), "examples") as advance:
            for plan in batches.bucket([len(e["input_ids"]) for e in encodings], batch_size):
                pad_to = length if padded else None
                total.add(batches.collate([encodings[i] for i in plan], tokenizer, where, pad_to=pad_to), plan)
                advance(len(plan))
        facts = provenance.record(
            "collect",
            {"samples": samples, "seed": seed, "max_length": length, "pooling": str(pooling)},
            base=base,
            task=chosen[name].task.to_dict(),
            data={"source": data, "split": chosen[name].split, "sha256": chosen[name].sha256},
            target_modules=target_names,
            fan_in_fan_out=any(base_model.is_conv1d(module) for module in targets.values()),
            statistics=[row.name for row in rows],
            layers=total.layers,
            tokens=total.tokens,
            examples=total.examples,
        )
        with atomic.write_file(path, overwrite) as stage:
            tensors.save(stage, total.finish([row.name for row in rows]), facts)
        written[name] = {"path": str(path), "examples": total.examples, "tokens": total.tokens, "layers": len(targets)}
    lines = (f"{fact['path']}  {fact['examples']} examples, {fact['tokens']} tokens" for fact in written.values())
    console.result({"features": written}, "\n".join(lines))


def _plan(paths: dict[str, Path], chosen: "dict[str, Data]", layers: int) -> str:
    return "\n".join(
        f"would write {path}: {len(chosen[n].examples)} examples, {layers} layers" for n, path in paths.items()
    )
