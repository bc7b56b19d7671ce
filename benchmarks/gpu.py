"""Every command on one GPU in bfloat16, and merging by every rule that reads adapters alone beside the CPU.

In one warm process: seconds of wall time of the functions behind the commands, with all they read and write, and the
most memory that PyTorch held on the GPU. Merges are of 4 adapters of rank 16 for the four attention matrices of one
layer; both results are compared in float64. Where PyTorch sees no GPU, the rows stay as they are stored.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import inputs, timing
from benchmarks.peers import texts
from benchmarks.peers.collect_beside import forward
from benchmarks.report import Row, Setting, load, script
from osrm_cli import collect_features, evaluate_folder, initialize_adapters, merge_adapters, run_sweep, train_adapters
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import METHODS
from osrm_cli.models.base_model import find_base_model

GPU = torch.device("cuda")
TEXT_TASKS = ("mini-json", "mini-steps")
UNLIKE = ("emr", "nearswap")  # the one makes no update, the other takes two adapters
ALL = tuple(method.name for method in METHODS if set(method.needs) <= {"seed"} and method.name not in UNLIKE)
WIDE = ("task-arith", "svd", "ties", "dare", "tsv", "knots-ties")  # these are measured at larger widths, too
WIDEST = ("task-arith", "ties", "tsv")


def measure(setting: Setting) -> Iterator[Row]:
    if not torch.cuda.is_available():
        yield from load("gpu")
        return
    torch.zeros(1, device=GPU)  # PyTorch starts CUDA
    for width, chosen in ((64, ALL), (128, WIDE)) if setting.quick else ((1024, ALL), (4096, WIDE), (8192, WIDEST)):
        yield from _merges(setting.folder / f"{width}", width, chosen, setting.repeats)
    for model in ("minilm", "smollm2"):
        try:
            find_base_model(model)
        except OsrmError:
            yield Row(f"{model}: every command", [0.0], f"{model} is missing")
            continue
        yield from _commands(setting, model)


def _merges(folder: Path, width: int, chosen: Sequence[str], repeats: int) -> Iterator[Row]:
    paths = inputs.save_adapters(folder, 4, 1, width, 16)
    for method in chosen:

        def merge(device: str, name: str = method) -> None:
            merge_adapters(paths, name, device=device, dtype="float32", out=folder / device, overwrite=True)

        merge("cuda")
        merge("cpu")
        difference = f"updates differ by {_difference(folder / 'cuda', folder / 'cpu'):.0e} of their norm"
        peak = _peak(partial(merge, "cuda"))
        runs = {device: partial(timing.seconds, partial(merge, device)) for device in ("cuda", "cpu")}
        found = timing.in_turn(runs, repeats)
        what = f"merge `{method}`, width {width:,}"
        yield Row(what, found["cuda"], "the CPU", found["cpu"], difference=f"{difference}; {peak:,.0f} MiB on the GPU")


def _difference(ours: Path, theirs: Path) -> float:
    """Norm of the difference of two merges' updates by that of the second, the largest over the layers."""
    left, right = (open_adapter(folder) for folder in (ours, theirs))
    worst = 0.0
    for layer in right.layers:
        a, b = (each.delta(layer).dense().to(GPU, torch.float64) for each in (left, right))
        worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


def _commands(setting: Setting, model: str) -> Iterator[Row]:
    folder = setting.folder / model
    samples, train, dev = (8, 16, 16) if setting.quick else (1000, 600, 256)
    names = inputs.save_tasks(folder / "glue", setting.data, samples, dev, 2 if setting.quick else None)
    on: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "overwrite": True}
    given: dict[str, Any] = {"model": model, "samples": samples, "out": folder / "features", **on}
    splits = texts.read(folder / "glue")
    place = find_base_model(model)

    def bare() -> None:
        for split in splits.values():
            forward(place, split, 1, GPU, torch.bfloat16)
        torch.cuda.synchronize()

    collect = partial(collect_features, names, folder / "glue", **given)
    yield from _row(f"collect, {model}, {len(names)} x {samples:,}", collect, setting, "bare forward pass", bare)
    if model == "smollm2":
        names, given["out"] = list(TEXT_TASKS), folder / "text-features"
        collect_features(names, "mini-text", **{**given, "samples": 16})
    starts = folder / "starts"
    initialize_adapters(names, given["out"], objective="gevd", out=starts)
    words = {"epochs": 1, "limit": train, "dev_limit": 32, "out": folder / "adapters"}
    chosen = [starts / name for name in names]
    yield from _row(f"train, {model}, {len(names)} x {train}", partial(train_adapters, chosen, **words, **on), setting)
    adapters = [folder / "adapters" / name for name in names]
    reading = {"features": given["out"]}
    drawn = {"options": {"samples": samples // 8}}
    for method, options in {"task-arith": {}, "regmean": reading, "sequential": drawn, "fisher": drawn}.items():
        merge = partial(merge_adapters, adapters, method, out=folder / method, device="cuda", overwrite=True, **options)
        yield from _row(f"merge `{method}`, {model}, {len(names)} tasks", merge, setting)
    score = partial(evaluate_folder, folder / "task-arith", limit=dev, out=folder / "scores.json", **on)
    yield from _row(f"eval, {model}, {len(names)} x {dev}, single beside merged", score, setting)
    grid = {"lambda": [step / 10 for step in range(1, 11)]}
    sweep = partial(run_sweep, adapters, grid=grid, limit=dev // 4, out=folder / "sweep", **on)
    yield from _row(f"sweep, {model}, 10 lambdas x {len(names)} x {dev // 4}", sweep, setting)


def _row(
    what: str, run: Callable[[], object], setting: Setting, peer: str = "", other: Callable[[], object] | None = None
) -> Iterator[Row]:
    peak = _peak(run)  # which warms up, too
    runs = {"ours": partial(timing.seconds, run)}
    if other:
        other()
        runs["theirs"] = partial(timing.seconds, other)
    found = timing.in_turn(runs, setting.repeats)
    yield Row(what, found["ours"], peer, found.get("theirs", ()), difference=f"{peak:,.0f} MiB on the GPU")


def _peak(run: Callable[[], object]) -> float:
    """The most memory that PyTorch holds on the GPU during a call, in MiB."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


if __name__ == "__main__":
    script("gpu", measure, __doc__)
