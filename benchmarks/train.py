"""`osrm train`, one epoch of MiniLM with LoRA of rank 8, whole processes, beside the recipe of run_glue with PEFT."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script

RECIPES = {
    "padded": ("run_glue, padded to 128", ["max_length"]),
    "dynamic": ("run_glue, dynamic padding", ["dynamic"]),
}


def measure(setting: Setting) -> Iterator[Row]:
    folder, place = setting.folder, inputs.model()
    train, dev = (16, 8) if setting.quick else (600, 100)
    names = inputs.save_tasks(folder / "data", setting.data, train, dev)
    chosen = [name for name in ("sst2", "qnli") if name in names] or names[:2]
    timing.osrm("collect", "--data", "data", "--samples", "2", "-q", cwd=folder)
    timing.osrm("init", "--each", "--objective", "kaiming", "-q", cwd=folder)
    for task in chosen[:1] if setting.quick else chosen:
        yield from _rows(folder, place, task, train, setting.few)


def _rows(folder: Path, place: Path, task: str, examples: int, repeats: int) -> Iterator[Row]:
    def peer(words: list[str], name: str) -> Callable[[], timing.Cost]:
        return lambda: timing.peer("run_glue", place, folder / "data", task, folder / name, *words)

    runs = {"ours": lambda: timing.osrm("train", f"starts/{task}", "--epochs", "1", "--overwrite", "-q", cwd=folder)}
    runs |= {name: peer(words, name) for name, (_, words) in RECIPES.items()}
    found = timing.in_turn(runs, repeats)
    metric, ours = next(pair for pair in _ours(folder, task).items() if pair[0] != "headline")
    for name, goal in (("padded", 2.5), ("dynamic", 1)):
        theirs = json.loads((folder / name / "scores.json").read_text(encoding="utf-8"))[f"eval_{metric}"]
        same = f"dev {metric} {ours:.1f} and {theirs:.1f}"
        yield Row(
            f"{task}, one epoch of {examples}", found["ours"], RECIPES[name][0], found[name], goal, difference=same
        )


def _ours(folder: Path, task: str) -> dict[str, float]:
    facts = json.loads((folder / "adapters" / task / "training.json").read_text(encoding="utf-8"))
    scores: dict[str, float] = facts["dev"]["scores"]
    return scores


if __name__ == "__main__":
    script("train", measure, __doc__)
