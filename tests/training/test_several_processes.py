"""Two processes train on text as one does on both of their batches, in as many parts as each needs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_cli import ROOT, osrm

ARGS = ("train", "starts/same", "--epochs", 2, "--limit", 16, "--dropout", 0, "--lr", 0.01,
        "--interference-penalty", 1000)  # fmt: skip
SCRIPT = """
import sys
from osrm_cli.cli.app import main
from osrm_cli.training import completion_trainer

completion_trainer.MAX_TRAINING_TOKENS = int(sys.argv.pop(1))
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [4096, 20])
def test_two_processes_train_as_one(
    max_tokens: int, tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    words = f'model = "{tiny_writer("llama")}"\ndata = "{completion_tasks}"\ndtype = "float32"\nquiet = true\n'
    (tmp_path / "osrm.toml").write_text(words)
    (tmp_path / "script.py").write_text(SCRIPT)
    assert osrm("collect", "--samples", 10, cwd=tmp_path).code == 0
    assert osrm("init", "--each", "--objective", "kaiming", cwd=tmp_path).code == 0
    assert osrm(*ARGS, "--batch-size", 16, "--out", "one", cwd=tmp_path).code == 0
    launcher = ("torchrun", "--standalone", "--nproc_per_node", "2", "script.py", str(max_tokens))
    done = subprocess.run(
        [*launcher, *map(str, ARGS), "--batch-size", "8", "--out", "two", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "same/training.json").read_text())["losses"] for name in ("one", "two"))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)
