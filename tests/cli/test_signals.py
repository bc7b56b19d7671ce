"""A signal at any time: the exit code of the signal, no traceback, nothing half-written."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run_cli import ROOT, listing

COMMAND = ("merge", "adapters/mood", "adapters/pair", "adapters/score", "--method", "ties", "--density", "0.5")


def interrupted(folder: Path, number: signal.Signals, seconds: float) -> tuple[int, str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "osrm_cli", *COMMAND, "--out", "o", "--overwrite"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    return child.returncode, stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_at_random_times(project_copy: Path, number: signal.Signals) -> None:
    before, draw = listing(project_copy), random.Random(0)
    for _ in range(6):
        code, stderr = interrupted(project_copy, number, draw.uniform(0.3, 4))
        assert code in (0, 128 + number, -number), stderr
        assert "Traceback" not in stderr
        left = listing(project_copy) - before
        assert all(name.startswith("o/") for name in left), left


def test_a_library_that_turns_the_signal_into_an_error_of_its_own(tmp_path: Path) -> None:
    code = """
import os, signal
from osrm_cli.cli import app
@app.app.command("wait")
def wait() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        raise RuntimeError("generator did not stop")
app.main()
"""
    words = [sys.executable, "-c", code, "wait"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (143, "")


def test_a_hang_up_is_ignored_where_it_was(tmp_path: Path) -> None:
    code = """
import os, signal
from osrm_cli.cli import app
signal.signal(signal.SIGHUP, signal.SIG_IGN)
@app.app.command("wait")
def wait() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    print("done")
app.main()
"""
    words = [sys.executable, "-c", code, "wait"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "done\n")
