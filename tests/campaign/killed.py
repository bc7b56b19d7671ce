"""Signals at random times: the old output or the new one, and a second run as if nothing had been."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests.campaign.damaged_inputs import digest_tree, explain_traceback
from tests.campaign.forked import run_forked, start_forked
from tests.campaign.project import ADAPTERS

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
COMMANDS: Mapping[str, str] = {  # by output
    "features": "collect --task mood --task pair --task score --samples 20",
    "starts": "init --each --objective osrm --rank 2",
    "adapters/mood": "train starts/mood --epochs 1 --lr 0.01",
    "merged": f"merge {ADAPTERS} --lambda 0.5",
    "merged-emr": f"merge {ADAPTERS} --method emr --out merged-emr",
    "merged-model": f"merge {ADAPTERS} --as model --out merged-model",
    "calibrated": "calibrate merged --samples 20",
    "scores.json": "eval merged --out scores.json",
    "sweep": f"sweep {ADAPTERS} --lambda 0.5",
    "retrofitted": f"retrofit {ADAPTERS}",
    "diagnosis": f"diagnose features {ADAPTERS}",
    "report": "report merged-emr merged-model",
}


def kill_one(project: Path, work: Path, seed: str, index: int) -> str | None:
    """Kill one command at a random time and run it again; what was wrong, if anything was."""
    draw = random.Random(f"{seed}/{index}")
    output = draw.choice(list(COMMANDS))
    number = draw.choice(SIGNALS)
    words = [*COMMANDS[output].split(), "--overwrite"]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(project, work)
    began = time.monotonic()
    whole = run_forked(words, work, work / ".log")
    duration = time.monotonic() - began
    if whole.code != 0:
        raise RuntimeError(f"osrm {' '.join(words)}: {whole}")
    target = work / output
    finished = digest_tree(target)
    if draw.random() < 0.5:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    is_there = target.exists()
    pid = start_forked(words, work, work / ".log")
    time.sleep(draw.uniform(0, 1.1 * duration))
    os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    told = f"{number.name} on osrm {' '.join(words)}"
    stderr = Path(f"{work / '.log'}.err").read_text()
    if "Traceback" in stderr:
        return f"{told}: {explain_traceback(stderr)}"
    if code not in (0, -number, 128 + number):
        return f"{told}: exit {code}: {stderr}"
    several = output in ("features", "starts", "retrofitted")  # an output for each task
    if (
        target.exists()
        and digest_tree(target) != finished
        and not (several and _is_part(digest_tree(target), finished))
    ):
        return f"{told}: the output is neither the old nor the new one"
    if is_there and not target.exists():
        return f"{told}: the old output is gone"
    again = run_forked(words, work, work / ".log")
    if again.code != 0 or digest_tree(target) != finished:
        return f"{told}: a second run differs: {again}"
    left = [path for path in work.rglob(".*.partial") if re.search(r"\.[a-z0-9_]{8}\.partial$", path.name)]
    return f"{told}: {left[0].name} is left after a second run" if left else None


def _is_part(found: Mapping[str, str], whole: Mapping[str, str]) -> bool:
    return all(whole.get(name.removeprefix(".")) == digest or ".partial" in name for name, digest in found.items())
