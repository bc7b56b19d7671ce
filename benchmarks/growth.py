"""How costs grow: each measured at 1, 2, 4 and 8 times the size, in one process, after its imports.

The exponent is the slope of log seconds over log size; what does not grow (opening files, loading the model) makes it
smaller. Theory counts the operations at large sizes.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import linear_regression

import torch

from benchmarks import inputs
from benchmarks.init import second_moment
from benchmarks.report import Row, Setting, script
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.osrm import osrm
from osrm_cli.linalg.second_moment import SecondMoment

TIMES = (1, 2, 4, 8)
# Exponents of merging with growing tasks, width and rank: d is the width, R the sum of the ranks.
THEORY = {
    "task-arith": (1, 1, 1),  # copies d R numbers
    "svd": (2, 1, 2),  # QR of d x R
    "knots-ties": (2, 1, 2),  # QR of d x R, elements T R d
    "ties": (1, 2, 0),  # T d^2 elements, whatever their rank
}


def measure(setting: Setting) -> Iterator[Row]:
    times = TIMES[:2] if setting.quick else TIMES
    yield from collect(setting, times)
    yield from init(setting, times)
    yield from merge(setting, times)


def collect(setting: Setting, times: tuple[int, ...]) -> Iterator[Row]:
    """MiniLM, means and second moments."""
    few = 2 if setting.quick else 24
    names = inputs.save_tasks(setting.folder / "data", setting.data, few * times[-1], 1)

    def run(tasks: int, samples: int) -> None:
        chosen = [word for name in names[:tasks] for word in ("--task", name)]
        command(setting.folder, "collect", *chosen, "--data", "data", "--samples", str(samples), "--overwrite", "-q")

    yield _row("collect, samples", 1, {n: lambda n=n: run(1, few * n) for n in times}, setting)
    yield _row("collect, tasks", 1, {n: lambda n=n: run(n, few) for n in times}, setting)


def init(setting: Setting, times: tuple[int, ...]) -> Iterator[Row]:
    """One layer's A: from means by QR, from second moments by Cholesky."""
    width, inner = (96, 64) if setting.quick else (2048, 512)

    def means(tasks: int, width: int, rank: int) -> Callable[[], object]:
        H = torch.randn(tasks, width, generator=torch.Generator().manual_seed(0))
        return lambda: [
            osrm(LayerProblem(rank, width, "layer", "task", 0, others=SecondMoment(H, factored=True))) for _ in range(8)
        ]

    def moments(width: int) -> Callable[[], object]:
        S = second_moment(width)
        return lambda: osrm(LayerProblem(8, width, "layer", "task", 0, others=SecondMoment(S, factored=False)))

    yield _row("init from means, tasks", 2, {n: means(32 * n, width, 8) for n in times}, setting)
    yield _row("init from means, width", 1, {n: means(64, width * n, 64) for n in times}, setting)
    yield _row("init from means, rank", 2, {n: means(8, width, 32 * n) for n in times}, setting)
    yield _row("init from second moments, width", 3, {n: moments(inner * n) for n in times}, setting)


def merge(setting: Setting, times: tuple[int, ...]) -> Iterator[Row]:
    """Four matrices, whole commands."""
    width = 64 if setting.quick else 512
    sizes = {
        "tasks": lambda n: (2 * n, 2 * width, 16),
        "width": lambda n: (4, width * n, 16),
        "rank": lambda n: (4, 2 * width, 4 * n),
    }
    made = {
        (name, n): inputs.save_adapters(setting.folder / name / str(n), shape[0], 1, *shape[1:])
        for name, size in sizes.items()
        for n in times
        for shape in [size(n)]
    }

    def run(method: str, name: str, n: int) -> None:
        recompressed = ("--rank", "16") if method == "ties" else ()
        command(setting.folder, "merge", *made[name, n], "--method", method, *recompressed, "--overwrite", "-q")

    for method, exponents in THEORY.items():
        for name, theory in zip(sizes, exponents, strict=True):
            runs = {n: lambda method=method, name=name, n=n: run(method, name, n) for n in times}
            yield _row(f"merge {method}, {name}", theory, runs, setting)


def command(folder: Path, *words: str | Path) -> None:
    """Run a command in this process, silently."""
    from osrm_cli.cli.app import app

    with contextlib.chdir(folder), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        app(list(map(str, words)), standalone_mode=False)


def _row(what: str, theory: float, runs: Mapping[int, Callable[[], object]], setting: Setting) -> Row:
    """Fit the exponent in each round; the first round of all, which warms up, does not count."""
    next(iter(runs.values()))()
    exponents, seconds = [], {}
    for _ in range(setting.few):
        for n, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[n] = time.perf_counter() - start
        logs = [math.log(value) for value in seconds.values()]
        exponents.append(linear_regression([math.log(n) for n in seconds], logs).slope)
    last = ", ".join(f"{value:.3g} s" for value in seconds.values())
    return Row(what, exponents, "theory", [theory] * len(exponents), unit="exponent", difference=last)


if __name__ == "__main__":
    script("growth", measure, __doc__)
