"""`osrm eval` and `osrm sweep` on 8 merged tasks of MiniLM, whole processes, beside Trainer and separate runs."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script

DTYPES = ("float32", "bfloat16")  # the default, and what a CPU with matrix units is fast in


def measure(setting: Setting) -> Iterator[Row]:
    folder = setting.folder
    tasks, dev = (2, 8) if setting.quick else (None, 256)
    names = inputs.pipeline(folder, setting.data, 32, dev, tasks)
    yield from _eval(folder, names, dev, setting.few)
    for dtype in DTYPES:
        yield _sweep(folder, names, dev // 4, dtype, setting.few)


def _eval(folder: Path, names: list[str], dev: int, repeats: int) -> Iterator[Row]:
    _merge(folder, names, "0.3")
    runs: dict[str, Callable[[], timing.Cost]] = {dtype: partial(_score, folder, dtype, dev) for dtype in DTYPES}
    words = (inputs.model(), folder / "data", "merged", "t.json")
    runs["trainer"] = lambda: timing.peer("trainer_evaluate", *words, cwd=folder)
    found = timing.in_turn(runs, repeats)
    theirs = json.loads((folder / "t.json").read_text(encoding="utf-8"))
    for dtype in DTYPES:
        ours = json.loads((folder / f"{dtype}.json").read_text(encoding="utf-8"))["tasks"]
        worst = max(abs(ours[t]["metrics"][m] - value) for t, row in theirs.items() for m, value in row.items())
        what, same = f"eval, {len(names)} tasks x {dev} examples, {dtype}", f"metrics differ by {worst:.2g}"
        yield Row(what, found[dtype], "Trainer.evaluate, padded to 128", found["trainer"], 3, difference=same)


def _sweep(folder: Path, names: list[str], limit: int, dtype: str, repeats: int) -> Row:
    adapters = [f"adapters/{name}" for name in names]
    words = ("--lambda", "0.1:1.0:0.1", "--limit", str(limit), "--dtype", dtype, "--overwrite", "-q")

    def separate() -> float:
        return 10 * (_merge(folder, names, "1.0").seconds + _score(folder, dtype, limit).seconds)

    runs = {"ours": lambda: timing.osrm("sweep", *adapters, *words, cwd=folder), "separate": separate}
    found = timing.in_turn(runs, repeats)
    what = f"sweep, 10 lambdas x {len(names)} tasks x {limit} examples, {dtype}"
    return Row(what, found["ours"], "merge and eval, ten times (one measured)", found["separate"], 3)


def _merge(folder: Path, names: list[str], scale: str) -> timing.Cost:
    adapters = [f"adapters/{name}" for name in names]
    return timing.osrm("merge", *adapters, "--lambda", scale, "--overwrite", "-q", cwd=folder)


def _score(folder: Path, dtype: str, limit: int) -> timing.Cost:
    words = ("--no-single", "--dtype", dtype, "--limit", str(limit), "--out", f"{dtype}.json", "--overwrite", "-q")
    return timing.osrm("eval", *words, cwd=folder)


if __name__ == "__main__":
    script("evaluate", measure, __doc__)
