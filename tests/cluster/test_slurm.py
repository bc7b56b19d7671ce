"""The workflow on a real Slurm cluster: a job killed, a node drained, and the same bytes as on one machine."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.slurm import missing_programs, start_cluster
from tests.run_cli import ROOT

pytestmark = pytest.mark.slow

if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
    pytest.skip("snakemake-executor-plugin-slurm is not installed", allow_module_level=True)
if missing := missing_programs():
    pytest.skip(f"Slurm is not installed: no {missing[0]}", allow_module_level=True)
if os.geteuid():
    pytest.skip("Slurm's daemons need root", allow_module_level=True)

LIMIT = 600  # seconds for each run of the study
PROGRAMS = Path(sys.executable).parent
CONFIG = os.environ.get("CLUSTER_STUDY", "tests/cluster/tiny.yaml")
STUDY = ("-s", ROOT / "workflow/Snakefile", "--configfile", ROOT / CONFIG)
SLURM = ["--executor", "slurm", "--jobs", "2", "--slurm-status-command", "squeue", "--latency-wait", "20"]
SLURM += ["--slurm-init-seconds-before-status-checks", "1", "--default-resources", "runtime=20", "mem_mb=1000"]
# Snakemake, but for its patience: it looks at the queue after 1, 11 and 21 seconds more, half of what the test takes.
EAGER = """
import asyncio, snakemake.cli
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.sleep = lambda self: asyncio.sleep(1)
snakemake.cli.main()
"""


def study(folder: Path, environment: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    """The workflow, started in a folder; its words go to a file beside it."""
    folder.mkdir(exist_ok=True)
    path = f"{PROGRAMS}{os.pathsep}{environment['PATH']}"
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", EAGER, *STUDY, *words],
            cwd=folder,
            env={**environment, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def slurm(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def results(folder: Path) -> dict[str, bytes]:
    home = folder / "results"
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def test_a_killed_job_and_a_drained_node(minilm: str, tmp_path: Path) -> None:
    """Killed in training with one node drained: the rest is finished by starting again, on the node that is left."""
    here, there = tmp_path / "here", tmp_path / "there"
    with ExitStack() as stack:
        # Beside the cluster, whose jobs leave cores idle.
        alone = stack.enter_context(study(here, dict(os.environ), "--cores", "2"))
        # Sockets have short names: a folder of pytest's own may be too deep.
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        environment = stack.enter_context(start_cluster(Path(folder) / "cluster"))
        running = study(there, environment, *SLURM)
        trains: list[str] = []
        end = time.monotonic() + LIMIT
        while running.poll() is None and not trains and time.monotonic() < end:
            queue = slurm(environment, "squeue", "--noheader", "--states=RUNNING", "--format=%i %k")
            trains = [line.split()[0] for line in queue.splitlines() if "rule_train" in line]
            time.sleep(0.5)
        if not trains:
            running.kill()
        assert trains, said(there)
        slurm(environment, "scancel", "--signal=KILL", "--full", trains[0])
        slurm(environment, "scontrol", "update", "nodename=node2", "state=drain", "reason=test")
        assert running.wait(LIMIT) == 1
        assert f"SLURM-job '{trains[0]}' failed" in said(there)
        assert study(there, environment, *SLURM).wait(LIMIT) == 0, said(there)
        jobs = slurm(environment, "scontrol", "--oneliner", "show", "jobs").splitlines()
        assert {line.partition("BatchHost=")[2].split()[0] for line in jobs if "rule_sweep" in line} == {"node1"}
    assert alone.wait(LIMIT) == 0, said(here)
    expected, found = results(here), results(there)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
