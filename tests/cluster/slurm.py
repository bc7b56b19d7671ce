"""Debian's Slurm with its own keys, ports and folders: a controller and two nodes of one core on this machine.

    apt-get install slurmctld slurmd slurm-client munge
    python -m tests.cluster.slurm FOLDER COMMAND...      # runs a command beside the cluster, then stops it

Needs root, since slurmd starts jobs as their user.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NODES = ("node1", "node2")
_SEARCHED = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
_WAIT = 30  # seconds for the nodes to register

_CONF = """
ClusterName=osrm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
MinJobAge=600
KillWait=2
JobRequeue=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What has to be installed first."""
    return [name for name in PROGRAMS if shutil.which(name, path=_SEARCHED) is None]


@contextmanager
def start_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster whose files are in a folder with a short path, since its sockets are there.

    Yields:
        The environment in which Slurm's commands reach it.

    Raises:
        RuntimeError: If the nodes do not register.
    """
    folder.mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    (folder / "state").mkdir()
    first = _free_port()
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={_free_port()} "
        "CPUs=1 RealMemory=8000"
        for name in NODES
    )
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=socket.gethostname(), port=first, folder=folder, nodes=nodes))
    path = os.pathsep.join((str(_write_wrappers(folder / "bin", conf)), os.environ["PATH"], "/usr/sbin"))
    environment = {**os.environ, "PATH": path}
    with ExitStack() as running:
        munged = f"munged --foreground --force --key-file={key} --socket={folder}/munge.socket "
        munged += f"--pid-file={folder}/munge.pid --log-file={folder}/munge.log --seed-file={folder}/munge.seed"
        _start(munged.split(), environment, folder / "munged.out", running)
        _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        _start(["slurmctld", "-D", "-f", str(conf)], environment, folder / "slurmctld.out", running)
        for name in NODES:
            (folder / f"spool-{name}").mkdir()
            _start(["slurmd", "-D", "-f", str(conf), "-N", name], environment, folder / f"{name}.out", running)
        _wait_for(lambda: _idle_nodes(environment) == len(NODES), folder)
        yield environment


def _write_wrappers(folder: Path, conf: Path) -> Path:
    """Commands that find the cluster's settings even where ``SLURM_CONF`` is not passed on, as within a job."""
    folder.mkdir()
    for name in PROGRAMS:
        program = shutil.which(name, path=_SEARCHED)
        if program and name.startswith("s"):
            (folder / name).write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {program} "$@"\n')
            (folder / name).chmod(0o755)
    return folder


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _start(words: list[str], environment: dict[str, str], output: Path, running: ExitStack) -> None:
    file = running.enter_context(output.open("wb"))
    process = subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT)
    running.callback(process.wait)
    running.callback(process.terminate)


def _idle_nodes(environment: dict[str, str]) -> int:
    words = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
    listed = subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout
    return sum(line.endswith(" idle") for line in listed.splitlines())


def _wait_for(condition: object, folder: Path) -> None:
    end = time.monotonic() + _WAIT
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.out")))
            raise RuntimeError(f"the cluster in {folder} did not start:\n{logs}")
        time.sleep(0.2)


if __name__ == "__main__":
    with start_cluster(Path(sys.argv[1]).resolve()) as reached:
        code = subprocess.run(sys.argv[2:], env=reached, check=False).returncode
    sys.exit(code)
