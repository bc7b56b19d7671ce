"""Wall time and peak memory of whole processes, and the time that their bytes alone take."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cost:
    """Seconds of wall time and the largest resident size in MiB."""

    seconds: float
    mebibytes: float


def process(words: Sequence[str], cwd: Path | None = None) -> Cost:
    """Run a program to its end.

    Raises:
        RuntimeError: If it fails; with what it said.
    """
    start = time.perf_counter()
    child = subprocess.Popen(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read() if child.stderr else b""
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)}: {said.decode()[-2000:]}")
    return Cost(seconds, usage.ru_maxrss / 1024)


def osrm(*words: str, cwd: Path | None = None) -> Cost:
    """Run one of our commands as a process."""
    return process([sys.executable, "-m", "osrm_cli", *words], cwd)


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(statistics.median(c.seconds for c in costs), statistics.median(c.mebibytes for c in costs))


def bytes_alone(read: Sequence[Path], written: int, scratch: Path) -> float:
    """Seconds to read files and to write and sync so many bytes: what no program that does both can beat."""
    start = time.perf_counter()
    buffer = bytearray(1 << 24)
    for path in read:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with scratch.open("wb", buffering=0) as file:
        left = written
        while left > 0:
            left -= file.write(buffer[: min(left, len(buffer))])
        os.fsync(file.fileno())
    scratch.unlink()
    return time.perf_counter() - start


def peak_of_this_process() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def save(name: str, facts: dict[str, Any], table: str) -> None:
    """Write results as JSON and Markdown, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
