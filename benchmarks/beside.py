"""Merging beside PEFT, mergekit and fusion_bench: the same 4 adapters of rank 16, whole processes, in one run.

As an adapter: one matrix, beside PEFT's `add_weighted_adapter`. As a model: two matrices in float32, beside mergekit
and fusion_bench on the models that the adapters make; a quarter of each adapter's ranks is common to all. Memory is the
largest resident size, libraries included. The exponents are of the seconds above each program's start, over those of
the widths 1024, 4096 and 8192 at which they are a tenth of it or more: none where only one is, or none. `task-arith`
and `ties` run at all widths, the others once, up to a width that keeps the whole run short.

Every method of ours is here that a peer has too and that can have the same result: nothing drawn at random, no data,
one model. Settings are the defaults of ours; `magnitude` is mergekit's `breadcrumbs` without outliers, `nearswap` takes
two models, the first of them for its base. What differs: PEFT's SVD is of the whole matrix, ours of a few directions,
see the kept energy; TIES and KnOTS of fusion_bench keep one entry more of a matrix, its trust region drops one more;
mergekit's Model Stock takes norms of whole matrices in float32, 8e-4 too short at width 4096.

Not here, since the result is another one: PEFT's `linear`, `ties` and `magnitude_prune` without SVD merge the factors;
mergekit's `karcher`, `slerp` and `arcee_fusion` turn or choose whole weights, its `nuslerp` does not keep the mean
length, its `multislerp` stops with an error at a weight that no adapter changes; fusion_bench's `tsv`, `iso-c` and
`iso-cts` take in null vectors where adapters have fewer ranks than the width, its `wudi` and `doge-ta` stop after some
hundred steps of Adam where ours is the minimum, its Model Stock averages angles and not their cosines.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import linear_regression, median

import torch
from safetensors.torch import load_file

from benchmarks import inputs, mergekit, timing
from benchmarks.peers import fusion_bench
from benchmarks.report import Row, Setting, script
from benchmarks.timing import Cost

TASKS, RANK, SHARED, KEPT = 4, 16, 4, 32
MAX_SVD = 4096  # the widest matrix whose full SVD, PEFT's, is waited for; beyond, the cube of the width is counted
STARTS = {
    "ours": ("osrm_cli.merging.output.merged_folder", "osrm_cli.models.devices"),
    "PEFT": ("peft", "torch"),
}


@dataclass(frozen=True)
class Method:
    """One of our methods, and who else has it; fusion_bench, where it has a rule in ``fusion_bench.RULES``.

    Attributes:
        name: Ours.
        options: Ours, beside the defaults.
        peft: Its ``combination_type``.
        weight: PEFT's, of each adapter.
        mergekit: Its name and parameters.
        base: The model that mergekit takes for the base model, if it takes any.
        tasks: How many are merged.
        widest: The widest matrix at which every peer is waited for.
        is_main: Whether it has as many rounds as are asked for.
    """

    name: str
    options: tuple[str, ...] = ()
    peft: str | None = None
    weight: float = 1.0
    mergekit: tuple[str, dict[str, float]] | None = None
    base: str | None = "base"
    tasks: int = TASKS
    widest: int = 4096
    is_main: bool = False

    @property
    def names(self) -> list[str]:
        """Of the adapters."""
        return [f"task{index}" for index in range(self.tasks)]

    @property
    def told(self) -> str:
        """As in a command."""
        return " ".join([self.name, *self.options])


METHODS = (
    Method("task-arith", peft="cat", mergekit=("task_arithmetic", {}), widest=8192, is_main=True),
    Method("ties", peft="ties_svd", mergekit=("ties", {"density": 0.2}), widest=8192, is_main=True),
    Method("average", peft="cat", weight=1 / TASKS, mergekit=("linear", {}), base=None, widest=8192),
    Method("svd", peft="svd"),
    Method("magnitude", peft="magnitude_prune_svd", mergekit=("breadcrumbs", {"density": 0.2, "gamma": 0.0})),
    Method("breadcrumbs", mergekit=("breadcrumbs", {"density": 0.2})),
    Method("breadcrumbs-ties", mergekit=("breadcrumbs_ties", {"density": 0.2, "normalize": True})),
    Method("sce", mergekit=("sce", {"select_topk": 0.2})),
    Method("ram", mergekit=("ram", {})),
    Method("ram", ("--bonus", "0.1"), mergekit=("ramplus_tl", {}), widest=1024),
    Method("model-stock", mergekit=("model_stock", {}), widest=8192),
    Method("nearswap", ("--primary", "task0"), mergekit=("nearswap", {"t": 0.001}), base="task0", tasks=2, widest=8192),
    Method("magmax", widest=8192),
    Method("consensus"),
    Method("tatr"),
    Method("svc", widest=1024),
    Method("knots-ties", widest=1024),
)


@dataclass(frozen=True)
class Inputs:
    """Adapters of one matrix and of two, and the models that the latter make."""

    width: int
    single: list[Path]
    double: list[Path]
    models: Path
    out: Path


@dataclass(frozen=True)
class Merged:
    """The costs of each program, and how far each peer's result is from ours."""

    what: str
    costs: dict[str, list[Cost]]
    same: dict[str, str]


def measure(setting: Setting) -> Iterator[Row]:
    widths = (128, 256) if setting.quick else (1024, 4096, 8192)
    grown: dict[tuple[str, str], dict[int, float]] = {}  # by what and program, seconds by width
    for width in widths:
        starts = _starts()
        given = _save(setting.folder / str(width), width)
        goal = 1 if width == widths[-1] and not setting.quick else None
        for method in METHODS:
            if width > (method.widest if not setting.quick else widths[method.is_main]):
                continue
            rounds = (setting.repeats if width <= 1024 else setting.few) if method.is_main else 1
            for merged in (_as_adapter(method, given, rounds), _as_model(method, given, rounds)):
                yield from _rows(merged, width, goal)
                yield from _scaled(merged, width, goal, grown, starts["PEFT"])
                for name, costs in merged.costs.items():
                    start = starts[name] if name in starts else fusion_bench.start(method.name)
                    seconds = median(cost.seconds for cost in costs) - start
                    if seconds > start / 10:
                        grown.setdefault((merged.what, name), {})[width] = seconds
            timing.remove(given.out)
        timing.remove(setting.folder / str(width))
    for (what, name), theirs in grown.items():
        ours = grown.get((what, "ours"), {})
        if name != "ours" and min(len(ours), len(theirs)) > 1:
            yield Row(f"{what}: growth with the width", [_slope(ours)], name, [_slope(theirs)], unit="exponent")


def _starts() -> dict[str, float]:
    """Seconds that each program takes to start, but fusion_bench, where it depends on the rule."""
    found = {name: timing.imports(*modules).seconds for name, modules in STARTS.items()}
    if place := mergekit.program():
        found["mergekit"] = timing.process([place, "--help"]).seconds
    return found


def _save(folder: Path, width: int) -> Inputs:
    single = inputs.save_shaped(folder / "single", TASKS, 1, {"self_attn.q_proj": (width, width)}, RANK, SHARED)
    shapes = {f"self_attn.{name}": (width, width) for name in ("q_proj", "o_proj")}
    double = inputs.save_shaped(folder / "double", TASKS, 1, shapes, RANK, SHARED)
    mergekit.save_models(folder / "models", double, 1, width, inner=64, kv_heads=1)
    inputs.flush()
    return Inputs(width, single, double, folder / "models", folder / "out")


def _as_adapter(method: Method, given: Inputs, rounds: int) -> Merged:
    """Beside PEFT; nothing is run where it has no such method."""
    rank = () if method.peft in ("cat", None) else ("--rank", str(KEPT))
    what, out = " ".join([f"`{method.told}", *rank]) + "`", given.out
    if not method.peft:
        return Merged(what, {}, {})
    adapters = given.single[: method.tasks]
    words = ("--method", method.name, *method.options, *rank, "--dtype", "float32", "--overwrite", "-q")
    runs = {"ours": partial(timing.osrm, "merge", *adapters, *words, "--out", out / "ours")}
    if not rank or given.width <= MAX_SVD:
        theirs = partial(timing.peer, "add_weighted_adapter", method.peft, str(method.weight), str(given.width))
        runs["PEFT"] = partial(theirs, out / "PEFT", *adapters)
    costs = _in_turn(runs, rounds)
    same = {name: _compare_adapters(out / "ours", out / name / "merged") for name in runs if name != "ours"}
    return Merged(what, costs, same)


def _as_model(method: Method, given: Inputs, rounds: int) -> Merged:
    """Beside mergekit and fusion_bench, as far as they are installed; nothing is run where no other has the method."""
    out, names = given.out, method.names
    what = f"`{method.told} --as model`"
    peers: dict[str, Callable[[], Cost]] = {}
    if method.mergekit and mergekit.program():
        recipe, parameters = method.mergekit
        place = out / "mergekit"
        peers["mergekit"] = partial(mergekit.merge, recipe, given.models, names, parameters, place, method.base)
    if method.name in fusion_bench.RULES and not method.options and fusion_bench.program():
        place = out / "fusion_bench"
        peers["fusion_bench"] = partial(fusion_bench.merge, method.name, given.models, names, place)
    if not peers:
        return Merged(what, {}, {})
    words = ("--method", method.name, *method.options, "--as", "model", "--overwrite", "-q")
    ours = partial(timing.osrm, "merge", *given.double[: method.tasks], *words)
    ours = partial(ours, "--model", given.models / "base", "--out", out / "ours")
    costs = _in_turn({"ours": ours, **peers}, rounds)
    return Merged(what, costs, {name: mergekit.difference(out / "ours", out / name) for name in peers})


def _in_turn(runs: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    found: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def _rows(merged: Merged, width: int, goal: float | None) -> Iterator[Row]:
    what = f"{merged.what}, width {width:,}"
    for unit, figure in (("s", lambda cost: cost.seconds), ("MiB", lambda cost: cost.mebibytes)):
        for name, costs in merged.costs.items():
            if name != "ours":
                ours = [figure(cost) for cost in merged.costs["ours"]]
                told = merged.same[name] if unit == "s" else ""
                yield Row(what, ours, name, [figure(cost) for cost in costs], goal, unit=unit, difference=told)


def _scaled(
    merged: Merged, width: int, goal: float | None, grown: Mapping[tuple[str, str], Mapping[int, float]], start: float
) -> Iterator[Row]:
    """PEFT's time where it is not waited for, from the widest matrix before."""
    if merged.costs and "PEFT" not in merged.costs and (merged.what, "PEFT") in grown:
        before, seconds = list(grown[merged.what, "PEFT"].items())[-1]
        ours = [median(cost.seconds for cost in merged.costs["ours"])]
        theirs = [seconds * (width / before) ** 3 + start]
        yield Row(f"{merged.what}, width {width:,}", ours, f"PEFT, from width {before:,}", theirs, goal)


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
