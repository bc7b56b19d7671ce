"""How long a person waits before anything happens: whole processes, after their first run."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import inputs, mergekit, timing
from benchmarks.report import Row, Setting, script

TAB = {"_OSRM_COMPLETE": "complete_bash", "COMP_WORDS": "osrm merge --method t", "COMP_CWORD": "3"}


def measure(setting: Setting) -> Iterator[Row]:
    folder = setting.folder
    tiny = inputs.save_adapters(folder / "tiny", 2, 1, 16, 2)
    osrm = [sys.executable, "-m", "osrm_cli"]
    runs = {
        "python": lambda: timing.process([sys.executable, "-c", "pass"]),
        "help": lambda: timing.process([*osrm, "--help"]),
        "tab": lambda: timing.process(osrm, env=TAB),
        "torch": lambda: timing.imports("torch"),
        "merge": lambda: timing.process([*osrm, "merge", *tiny, "--out", folder / "out", "--overwrite", "-q"]),
    }
    peers = {"mergekit-yaml --help": mergekit.program(), "lm_eval --help": _program("lm_eval")}
    for name, program in peers.items():
        if program:
            runs[name] = lambda program=program: timing.process([program, "--help"])
    for run in runs.values():
        run()  # the first run of a program reads it from the disk
    found = timing.in_turn(runs, setting.repeats)
    for name in peers:
        missing = f"{name}: not installed"
        yield Row("`osrm --help`", found["help"], name if name in found else missing, found.get(name, ()), 0.3, "below")
    yield Row("a TAB after `osrm merge --method`", found["tab"], "python alone", found["python"], 0.15, "below")
    yield Row("`osrm merge` of two tiny adapters", found["merge"], "import torch", found["torch"], 2.5, "below")


def _program(name: str) -> Path | None:
    place = shutil.which(name)
    return Path(place) if place else None


if __name__ == "__main__":
    script("start_up", measure, __doc__)
