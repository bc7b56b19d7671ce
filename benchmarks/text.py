"""Text tasks on SmolLM2-135M: training beside Trainer, generation beside `generate`, sweeps beside separate runs.

Whole processes but for generation, which is timed in one process after the model is loaded.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import timing
from benchmarks.report import Row, Setting, script
from osrm_cli.tasks.mini_text import MINI_TEXT, MINI_TEXT_FOLDER

AGAIN = {"mini-json": "more-json", "mini-sql": "more-sql"}


def measure(setting: Setting) -> Iterator[Row]:
    folder = setting.folder
    train, dev = (16, 4) if setting.quick else (96, 24)
    task = "mini-json"
    names = _save_six_tasks(folder / "data")
    timing.osrm("collect", "--data", "data", "--model", "smollm2", "--samples", "2", "-q", cwd=folder)
    timing.osrm("init", "--each", "--objective", "kaiming", "-q", cwd=folder)
    yield from _train(folder, task, train, dev, setting.few)
    starts = [f"starts/{name}" for name in names]
    words = ("--limit", "16", "--dev-limit", "4", "--epochs", "1", "--overwrite", "-q")
    timing.osrm("train", *starts, *words, cwd=folder)
    yield _generate(folder, task, dev, setting.few)
    yield from _sweep(folder, names, dev // 2, setting.few)


def _save_six_tasks(folder: Path) -> list[str]:
    """The four generated tasks, and two of them under another name: what is timed does not depend on their scores."""
    names = {name: name for name in MINI_TEXT} | {new: old for old, new in AGAIN.items()}
    for name, source in names.items():
        shutil.copytree(MINI_TEXT_FOLDER / source, folder / name)
    return list(names)


def _train(folder: Path, task: str, train: int, dev: int, repeats: int) -> Iterator[Row]:
    words = ("--limit", str(train), "--dev-limit", str(dev), "--epochs", "1", "--dtype", "float32")
    runs = {"ours": lambda: timing.osrm("train", f"starts/{task}", *words, "--overwrite", "-q", cwd=folder)}
    for padding in ("dynamic", "max_length"):
        runs[padding] = lambda padding=padding: timing.peer(
            "completions", "train", task, train, dev, padding, cwd=folder
        )
    found = timing.in_turn(runs, repeats)
    for padding, goal in (("max_length", 2), ("dynamic", 1)):
        peer = f"Trainer, {'padded to 128' if padding == 'max_length' else 'dynamic padding'}"
        yield Row(f"train, {task}, one epoch of {train}", found["ours"], peer, found[padding], goal)


def _generate(folder: Path, task: str, count: int, repeats: int) -> Row:
    seconds: dict[str, list[float]] = {"ours": [], "alone": []}
    for _ in range(repeats):
        timing.peer("completions", "generate", task, str(count), "generate.json", cwd=folder)
        for name, value in json.loads((folder / "generate.json").read_text(encoding="utf-8")).items():
            seconds[name].append(value)
    return Row(f"generate, {count} answers to {task}", seconds["ours"], "generate, one by one", seconds["alone"], 5)


def _sweep(folder: Path, names: Sequence[str], limit: int, repeats: int) -> Iterator[Row]:
    """Beside the commands of a loop: as they are, and without what a sweep of losses does not do, either."""
    adapters = [f"adapters/{name}" for name in names]
    words = ("--limit", str(limit), "--overwrite", "-q")

    def loop(*runs_of_eval: tuple[int, Sequence[str]]) -> float:
        merged = timing.osrm("merge", *adapters, "--lambda", "1.0", "--overwrite", "-q", cwd=folder)
        scored = [
            times * timing.osrm("eval", "merged", *flags, *words, cwd=folder).seconds for times, flags in runs_of_eval
        ]
        return 10 * merged.seconds + sum(scored)

    runs = {
        "ours": lambda: timing.osrm("sweep", *adapters, "--lambda", "0.1:1.0:0.1", *words, cwd=folder),
        "plain": lambda: loop((10, ())),
        "losses": lambda: loop((9, ("--no-generate", "--no-single")), (1, ("--no-generate",))),
    }
    found = timing.in_turn(runs, repeats)
    what = f"sweep of losses, 10 lambdas x {len(names)} tasks x {limit} examples"
    yield Row(what, found["ours"], "merge and eval, ten times (one measured)", found["plain"], 4)
    peer = "the same by losses alone, the single adapters once"
    yield Row(what, found["ours"], peer, found["losses"], 4)


if __name__ == "__main__":
    script("text", measure, __doc__)
