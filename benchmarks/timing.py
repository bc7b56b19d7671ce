"""Wall time and peak memory of whole processes and of functions, and the time that their bytes alone take."""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LAUNCHER = Path(__file__).parent / "launch.py"


@dataclass(frozen=True)
class Cost:
    """Seconds of wall time and the largest resident size in MiB."""

    seconds: float
    mebibytes: float


def process(words: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Cost:
    """Run a program to its end, as after its first run: Python may use the bytecode that it has stored.

    Raises:
        RuntimeError: If it fails; with what it said.
    """
    around = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    around.pop("PYTHONDONTWRITEBYTECODE", None)
    launched = subprocess.run(
        [sys.executable, "-IS", str(LAUNCHER), *map(str, words)],
        cwd=cwd,
        env={**around, **(env or {})},
        capture_output=True,
        text=True,
    )
    if launched.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {launched.stderr[-2000:]}")
    taken, kibibytes = map(float, launched.stdout.split())
    return Cost(taken, kibibytes / 1024)


def osrm(*words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Cost:
    """Run one of our commands as a process."""
    return process([sys.executable, "-m", "osrm_cli", *words], cwd, env)


def peer(name: str, *words: str | Path, cwd: Path | None = None) -> Cost:
    """Run a program of ``benchmarks/peers`` as a process."""
    return process([sys.executable, "-m", f"benchmarks.peers.{name}", *words], cwd)


def imports(*modules: str) -> Cost:
    """A process that imports modules and ends."""
    return process([sys.executable, "-c", f"import {', '.join(modules)}"])


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(runs: Mapping[str, Callable[[], Cost | float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, by name: one after the other, and then all again, so that a busy minute hits them alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            cost = run()
            found[name].append(cost.seconds if isinstance(cost, Cost) else cost)
    return found


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **gpu,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
