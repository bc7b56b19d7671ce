"""`osrm merge` on 8 adapters of an 8B model's shape: rank 16, 32 layers x q k v o, width 4096, bfloat16.

Whole processes, less the time to start (torch imported); PEFT and dense linear algebra in memory, on one matrix, times
128. The dense peers `knots-ties` and `tsv` are measured at width 1024, times 64: their SVDs grow with the cube of the
width. That the results are equal was checked at width 256.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import dense, inputs, mergekit, peft_merge, timing
from benchmarks.report import Row, Setting, script
from osrm_cli.adapters.layers import WEIGHTS_NAME

TASKS, RANK, SMALL = 8, 16, 256


def measure(setting: Setting) -> Iterator[Row]:
    layers, width = (1, SMALL) if setting.quick else (32, 4096)
    matrices, rounds = layers * len(inputs.PROJECTIONS), min(setting.repeats, 2)
    folder = setting.folder
    paths = inputs.save_adapters(folder / "adapters", TASKS, layers, width, RANK)
    inputs.flush()
    costs = _ours(folder, paths, rounds)
    bytes_alone = [cost.seconds for cost in costs.pop("bytes")]
    start = [cost.seconds for cost in costs["start"]]
    base = timing.median(costs.pop("start")).mebibytes

    def above(method: str) -> list[float]:
        return [cost.seconds - first for cost, first in zip(costs[method], start, strict=True)]

    shape = f"rank {RANK}, {matrices} matrices of width {width}"
    yield Row(
        f"`task-arith`, {shape}",
        above("task-arith"),
        "read and write the bytes",
        bytes_alone,
        3,
        "within",
    )
    yield from _peft(above, matrices, width, rounds)
    for method, rule in dense.RULES.items():
        at = min(width, 1024) if method in ("knots-ties", "tsv") else width
        given = dense.updates(TASKS, at, RANK)
        factor = matrices * (width / at) ** 3
        theirs = [timing.seconds(lambda rule=rule, given=given: rule(given)) * factor for _ in range(rounds)]
        same = _same(rule(dense.updates(TASKS, SMALL, RANK)), method)
        peer = f"dense {method}, one matrix of width {at} times {factor:,.0f}"
        yield Row(f"`{method}`", above(method), peer, theirs, 100, difference=same)
    for method, found in costs.items():
        peak = [cost.mebibytes - base for cost in found]
        yield Row(f"`{method}`: peak memory above start-up", peak, goal=1024, kind="below", unit="MiB")
    yield full_models(setting, "task-arith", "task_arithmetic", {}, None)


def _ours(folder: Path, paths: list[Path], repeats: int) -> dict[str, list[timing.Cost]]:
    """Costs of each method, of a process that only starts, and of the bytes that ``task-arith`` reads and writes."""
    modules = ("osrm_cli.merging.output.merged_folder", "osrm_cli.models.devices")

    def run(method: str) -> timing.Cost:
        words: list[str | Path] = [*paths, "--method", method, "--out", folder / method, "--overwrite", "-q"]
        return timing.osrm("merge", *words, *(["--rank", str(RANK)] if method == "svd" else []))

    def bytes_alone() -> timing.Cost:
        written = (folder / "task-arith" / WEIGHTS_NAME).stat().st_size
        return timing.Cost(timing.bytes_alone([path / WEIGHTS_NAME for path in paths], written, folder / "scratch"), 0)

    found: dict[str, list[timing.Cost]] = {}
    for _ in range(repeats):
        found.setdefault("start", []).append(timing.imports(*modules))
        found.setdefault("task-arith", []).append(run("task-arith"))
        found.setdefault("bytes", []).append(bytes_alone())
        for method in ("svd", *dense.RULES):
            found.setdefault(method, []).append(run(method))
    return found


def _peft(above: Callable[[str], list[float]], matrices: int, width: int, repeats: int) -> Iterator[Row]:
    scaled = f"one matrix times {matrices}"
    for method, kind, goal in (("task-arith", "cat", None), ("svd", "svd", 100)):
        theirs = [peft_merge.merge(kind, TASKS, width, RANK)[0] * matrices for _ in range(repeats)]
        same = _same(peft_merge.merge(kind, TASKS, SMALL, RANK)[1], method)
        yield Row(f"`{method}`", above(method), f"PEFT {kind}, {scaled}", theirs, goal, difference=same)


def _same(theirs: torch.Tensor, method: str) -> str:
    error = peft_merge.distance(peft_merge.ours(method, TASKS, SMALL, RANK), theirs)
    return f"largest difference {error:.0e} of the largest entry"


def full_models(setting: Setting, method: str, kind: str, parameters: dict[str, float], goal: float | None) -> Row:
    """Four adapters to one model, beside mergekit on the four models that they make; whole processes."""
    folder, width, layers = setting.folder / f"full-{method}", 128 if setting.quick else 1024, 1 if setting.quick else 4
    what = f"`{method} --as model`, 4 tasks, {layers} layers of width {width}, float32"
    paths = inputs.save_adapters(folder / "adapters", 4, layers, width, RANK)
    base = mergekit.save_models(folder / "models", paths, layers, width)
    inputs.flush()
    words: list[str | Path] = [
        *paths,
        "--method",
        method,
        "--as",
        "model",
        "--model",
        base,
        "--out",
        folder / "ours",
        "--overwrite",
        "-q",
    ]
    runs: dict[str, Callable[[], timing.Cost | float]] = {"ours": lambda: timing.osrm("merge", *words)}
    if mergekit.program():
        names = [path.name for path in paths]
        runs["mergekit"] = lambda: mergekit.merge(kind, folder / "models", names, parameters, folder / "theirs")
    found = timing.in_turn(runs, min(setting.repeats, 2))
    if "mergekit" not in found:
        return Row(what, found["ours"], mergekit.MISSING)
    same = mergekit.difference(folder / "ours", folder / "theirs")
    return Row(what, found["ours"], f"mergekit {kind}", found["mergekit"], goal, difference=same)


if __name__ == "__main__":
    script("merge", measure, __doc__)
