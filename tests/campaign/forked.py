"""Run ``osrm`` in a fork of a process that has imported everything, with bounds on time and memory."""

import gc
import importlib
import io
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPU, WALL = 60, 300  # seconds
MEMORY = 3 << 30  # bytes above the start
TRACEBACK = 70
_IMPORTED_LATE = (
    "encodings.utf_8_sig",
    "matplotlib.backends.backend_agg",
    "peft.utils.transformers_weight_conversion",
    "rich._emoji_codes",
    "rich.live",
    "rich.table",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.svm",
    "transformers.models.bert.modeling_bert",
)


@dataclass(frozen=True)
class Outcome:
    """What came of a run: exit code (70 for an uncaught exception), ``hang``, or a signal's name; seconds of a CPU."""

    code: int | str
    seconds: float
    mebibytes: float
    stdout: str
    stderr: str


def import_everything() -> None:
    """Import what the commands import, so that a fork does not have to."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    import osrm_cli

    for module in pkgutil.walk_packages(osrm_cli.__path__, "osrm_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _IMPORTED_LATE:
        importlib.import_module(name)


def warm_up(base: Path) -> None:
    """Fill the libraries' own caches (patterns of names, fonts), and keep a fork from copying what it does not change.

    Args:
        base: A base model. No gradient is computed: PyTorch refuses gradients in a fork of a process that has.
    """
    import matplotlib.figure
    import transformers
    import typer.main

    from osrm_cli.cli.app import app

    command = typer.main.get_command(app)  # the parser, which is built anew for each run otherwise
    typer.main.get_command = lambda _: command
    transformers.AutoModelForSequenceClassification.from_pretrained(base, trust_remote_code=False)
    figure = matplotlib.figure.Figure(layout="constrained")
    figure.subplots().plot([1, 2], [1, 2], label="warm")
    figure.legend()
    figure.savefig(io.BytesIO(), format="png")
    gc.collect()
    gc.freeze()


def run_forked(words: Sequence[str], folder: Path, log: Path, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """Run one command.

    Args:
        words: The command line after ``osrm``.
        folder: The current folder.
        log: Beginning of the paths of the two files that take the output.
        prepare: Called in the new process before the command.
    """
    return collect_forked(start_forked(words, folder, log, prepare), log)


def start_forked(words: Sequence[str], folder: Path, log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Begin to run one command; returns the process id."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    pid = os.fork()
    if pid == 0:
        _become_osrm(words, folder, log, limit, prepare)
    return pid


def collect_forked(pid: int, log: Path) -> Outcome:
    """Wait for a command that was begun."""
    began = time.monotonic()
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > WALL:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    seconds = time.monotonic() - began
    code: int | str = os.waitstatus_to_exitcode(status)
    if isinstance(code, int) and code < 0:
        name = signal.Signals(-code).name
        code = "hang" if name == "SIGXCPU" or seconds > WALL else name
    texts = [Path(f"{log}.{stream}").read_text(errors="replace") for stream in ("out", "err")]
    return Outcome(code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, *texts)


def _become_osrm(words: Sequence[str], folder: Path, log: Path, limit: int, prepare: Callable[[], None]) -> None:
    code = 99
    try:
        os.chdir(folder)
        for number, path in enumerate((os.devnull, f"{log}.out", f"{log}.err")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags), number)
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        prepare()
        sys.argv = ["osrm", *words]
        from osrm_cli.cli.app import main

        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = TRACEBACK
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                if stream is not None:
                    stream.flush()
    finally:
        os._exit(code)
