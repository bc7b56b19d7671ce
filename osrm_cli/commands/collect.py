"""``osrm collect``: text -> features/<task>.safetensors."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osrm_cli.commands import options
from osrm_cli.commands.options import Device, DType, Pooling
from osrm_cli.console import Console
from osrm_cli.maths import statistics
from osrm_cli.maths.statistics import Statistic

if TYPE_CHECKING:
    import torch

    from osrm_cli.language.activations import Totals
    from osrm_cli.language.task import Data


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
    from osrm_cli.artifacts import atomic, provenance
    from osrm_cli.language import base_model, devices, tasks

    console = Console(json, quiet)
    rows = [statistics.find(name) for name in statistic or ["mean", "second-moment"]]
    names = list(dict.fromkeys(task or tasks.names(data)))
    paths = {name: out / f"{name}.safetensors" for name in names}
    for path in paths.values():
        atomic.refuse_existing(path, overwrite)
    chosen = {name: tasks.sample(tasks.load(name, data, "train"), samples, seed) for name in names}
    lengths = {name: max_length or chosen[name].task.max_length or options.MAX_LENGTH for name in names}

    folder, base = base_model.locate(model, revision), base_model.identify(model, revision)
    base_model.check_length(folder, max(lengths.values()))
    where = devices.pick_device(device)
    source = _Source(folder, where, devices.pick_dtype(dtype, where), target_modules, seed)
    if dry_run:
        console.result({"would_write": [str(path) for path in paths.values()]}, _plan(paths, chosen, source))
        return

    written = {}
    for name, path in paths.items():
        settings = {"samples": samples, "seed": seed, "pooling": str(pooling), "max_length": lengths[name]}
        with console.progress(f"collect {name}", len(chosen[name].examples), "examples") as advance:
            total = source.read(chosen[name], rows, settings, batch_size, advance)
        facts = {"data": {"source": data, "split": chosen[name].split, "sha256": chosen[name].sha256}, **source.facts()}
        record = provenance.record("collect", settings, base=base, task=chosen[name].task.to_dict(), **facts)
        _write(path, total, rows, record, overwrite)
        counts = {"examples": total.examples, "tokens": total.tokens, "layers": len(total.layers)}
        written[name] = {"path": str(path), **counts}
    lines = (f"{fact['path']}  {fact['examples']} examples, {fact['tokens']} tokens" for fact in written.values())
    console.result({"features": written}, "\n".join(lines))


class _Source:
    """A base model whose target layers are watched."""

    def __init__(
        self, folder: Path, device: "torch.device", dtype: "torch.dtype", names: list[str] | None, seed: int
    ) -> None:
        from osrm_cli.language import base_model, targets

        self.device = device
        self.tokenizer = base_model.load_tokenizer(folder)
        classifier = base_model.load_classifier(folder, 1, self.tokenizer, dtype, seed)
        wanted = names or targets.default_targets(classifier.model)
        self.layers = targets.find_targets(classifier, wanted)
        self.names = targets.spelled(classifier, wanted, self.layers)
        self.model = classifier.model
        whole: torch.nn.Module = self.model  # transformers' own method "to" is not typed
        whole.to(device)

    def read(
        self,
        data: "Data",
        rows: list[Statistic],
        settings: dict[str, Any],
        batch_size: int,
        advance: Callable[[int], None],
    ) -> "Totals":
        """Statistics of every target layer over the examples of one task."""
        from osrm_cli.language import activations, batches

        padded = settings["pooling"] == Pooling.PADDED
        encodings = batches.tokenise(self.tokenizer, data.examples, settings["max_length"])
        total = activations.Totals(self.model, self.layers, [row.load() for row in rows], padded)
        for plan in batches.bucket([len(encoding["input_ids"]) for encoding in encodings], batch_size):
            chosen = [encodings[index] for index in plan]
            pad_to = settings["max_length"] if padded else None
            total.add(batches.collate(chosen, self.tokenizer, self.device, pad_to=pad_to), plan)
            advance(len(plan))
        return total

    def facts(self) -> dict[str, Any]:
        """What a start has to know of the target layers."""
        from osrm_cli.language import targets

        conv1d = any(targets.is_conv1d(layer) for layer in self.layers.values())
        return {"target_modules": self.names, "fan_in_fan_out": conv1d}


def _write(path: Path, total: "Totals", rows: list[Statistic], record: dict[str, Any], overwrite: bool) -> None:
    from osrm_cli.artifacts import atomic, tensors

    names = [row.name for row in rows]
    counts = {"layers": total.layers, "tokens": total.tokens, "examples": total.examples}
    with atomic.write_file(path, overwrite) as stage:
        tensors.save(stage, total.finish(names), {**record, "statistics": names, **counts})


def _plan(paths: dict[str, Path], chosen: "dict[str, Data]", source: _Source) -> str:
    return "\n".join(
        f"would write {path}: {len(chosen[name].examples)} examples, {len(source.layers)} layers"
        for name, path in paths.items()
    )
