"""Merging beside PEFT, mergekit and fusion_bench: the same 4 adapters of rank 16, whole processes, in one run.

As an adapter: one matrix, beside PEFT's `add_weighted_adapter`. As a model: two matrices in float32, beside mergekit
and fusion_bench on the models that the adapters make. Memory is the largest resident size, libraries included. The
exponents are of the seconds above each program's start, over those of the widths 1024, 4096 and 8192 at which they
are a tenth of it or more: none where only one is, or none.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import linear_regression, median

import torch
from safetensors.torch import load_file

from benchmarks import inputs, mergekit, timing
from benchmarks.peers import fusion_bench
from benchmarks.report import Row, Setting, script
from benchmarks.timing import Cost

TASKS, RANK, KEPT = 4, 16, 32
MAX_SVD = 4096  # the widest matrix whose full SVD, PEFT's, is waited for; beyond, the cube of the width is counted
NAMES = [f"task{index}" for index in range(TASKS)]
STARTS = {
    "ours": ("osrm_cli.merging.output.merged_folder", "osrm_cli.models.devices"),
    "PEFT": ("peft", "torch"),
}
# By our method: PEFT's, mergekit's with its parameters, and fusion_bench's.
METHODS = {
    "task-arith": ("cat", "task_arithmetic", {}),
    "ties": ("ties_svd", "ties", {"density": 0.2}),
}
Costs = dict[str, list[Cost]]  # by program


def measure(setting: Setting) -> Iterator[Row]:
    widths = (128, 256) if setting.quick else (1024, 4096, 8192)
    grown: dict[tuple[str, str], dict[int, float]] = {}  # by what and program, seconds by width
    for width in widths:
        starts = _starts()
        for what, found, same in _of_width(setting, width):
            goal = 1 if width == widths[-1] and not setting.quick else None
            yield from _rows(f"{what}, width {width:,}", found, same, goal)
            if "PEFT" not in found and (what, "PEFT") in grown:
                before, seconds = list(grown[what, "PEFT"].items())[-1]
                scaled = seconds * (width / before) ** 3 + starts["PEFT"]
                ours = [median(cost.seconds for cost in found["ours"])]
                yield Row(f"{what}, width {width:,}", ours, f"PEFT, from width {before:,}", [scaled], goal)
            for name, costs in found.items():
                seconds = median(cost.seconds for cost in costs) - starts[name]
                if seconds > starts[name] / 10:
                    grown.setdefault((what, name), {})[width] = seconds
        timing.remove(setting.folder / str(width))
    for (what, name), theirs in grown.items():
        ours = grown.get((what, "ours"), {})
        if name != "ours" and min(len(ours), len(theirs)) > 1:
            yield Row(f"{what}: growth with the width", [_slope(ours)], name, [_slope(theirs)], unit="exponent")


def _starts() -> dict[str, float]:
    """Seconds that each program takes to start."""
    found = {name: timing.imports(*modules).seconds for name, modules in STARTS.items()}
    if place := mergekit.program():
        found["mergekit"] = timing.process([place, "--help"]).seconds
    if python := fusion_bench.program():
        found["fusion_bench"] = timing.process([python, "-c", "import fusion_bench.method.ties_merging"]).seconds
    return found


def _of_width(setting: Setting, width: int) -> Iterator[tuple[str, Costs, Mapping[str, str]]]:
    """What is merged, the costs of each program, and how far each peer's result is from ours."""
    folder = setting.folder / str(width)
    single = inputs.save_shaped(folder / "single", TASKS, 1, {"self_attn.q_proj": (width, width)}, RANK)
    shapes = {f"self_attn.{name}": (width, width) for name in ("q_proj", "o_proj")}
    double = inputs.save_shaped(folder / "double", TASKS, 1, shapes, RANK)
    base = mergekit.save_models(folder / "models", double, 1, width, inner=64, kv_heads=1)
    inputs.flush()
    for method, (kind, recipe, parameters) in METHODS.items():
        out, rank = folder / "out", ("--rank", str(KEPT)) if method == "ties" else ()
        words = ("--method", method, *rank, "--dtype", "float32", "--overwrite", "-q", "--out", out / "ours")
        runs: dict[str, Callable[[], Cost]] = {
            "ours": partial(timing.osrm, "merge", *single, *words),
        }
        if kind == "cat" or width <= MAX_SVD:
            runs["PEFT"] = partial(timing.peer, "add_weighted_adapter", kind, str(width), out / "PEFT", *single)
        found = _in_turn(runs, setting, width)
        same = {name: _compare_adapters(out / "ours", out / name / "merged") for name in runs if name != "ours"}
        yield f"`{' '.join([method, *rank])}`", found, same
        words = ("--method", method, "--as", "model", "--model", base, "--overwrite", "-q", "--out", out / "ours")
        runs = {"ours": partial(timing.osrm, "merge", *double, *words)}
        if mergekit.program():
            theirs = partial(mergekit.merge, recipe, folder / "models", NAMES, parameters)
            runs["mergekit"] = partial(theirs, out / "mergekit")
        if fusion_bench.program():
            runs["fusion_bench"] = partial(fusion_bench.merge, recipe, folder / "models", NAMES, out / "fusion_bench")
        found = _in_turn(runs, setting, width)
        peers = [name for name in runs if name != "ours"]
        same = {name: mergekit.difference(out / "ours", out / name) for name in peers}
        yield f"`{method} --as model`", found, same
        timing.remove(out)


def _in_turn(runs: Mapping[str, Callable[[], Cost]], setting: Setting, width: int) -> Costs:
    """One round at large widths, where each program takes long; else all."""
    found: Costs = {name: [] for name in runs}
    for _ in range(setting.few if width > 4096 else setting.repeats):
        for name, run in runs.items():
            found[name].append(run())
    return found


def _rows(what: str, found: Costs, same: Mapping[str, str], goal: float | None) -> Iterator[Row]:
    for unit, figure in (("s", lambda cost: cost.seconds), ("MiB", lambda cost: cost.mebibytes)):
        ours = [figure(cost) for cost in found["ours"]]
        for name, costs in found.items():
            if name != "ours":
                told = same[name] if unit == "s" else ""
                yield Row(what, ours, name, [figure(cost) for cost in costs], goal, unit=unit, difference=told)


def _slope(seconds: Mapping[int, float]) -> float:
    logs = [math.log(value) for value in seconds.values()]
    return linear_regression([math.log(width) for width in seconds], logs).slope


def _compare_adapters(ours: Path, theirs: Path) -> str:
    """How far two updates of one matrix are apart, in units of the second; neither is ever formed."""
    (b, a), (other_b, other_a) = (_factors(folder) for folder in (ours, theirs))
    gap, norm = _norm(torch.cat([b, -other_b], 1), torch.cat([a, other_a])), _norm(other_b, other_a)
    return f"updates differ by {gap / norm:.0e} of their norm, ours has {(_norm(b, a) / norm) ** 2:.4%} of their energy"


def _factors(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """``B`` with its scaling and ``A``, float64."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    (a,), (b,) = ([x.double() for name, x in tensors.items() if f"lora_{side}" in name] for side in "AB")
    return b * (config["lora_alpha"] / config["r"]), a


def _norm(b: torch.Tensor, a: torch.Tensor) -> float:
    left, right = torch.linalg.qr(b).R, torch.linalg.qr(a.T).R
    return float((left @ right.T).norm())


if __name__ == "__main__":
    script("beside", measure, __doc__)
