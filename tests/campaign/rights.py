"""Rights taken away from inputs, outputs and the folders that they lie in."""

import ctypes
import os
import random
import shutil
from pathlib import Path

from tests.campaign.damaged_inputs import digest_tree
from tests.campaign.forked import run_forked
from tests.campaign.killed import COMMANDS

_CAPABILITIES_VERSION, _READ_AND_WRITE_ALL = 0x20080522, 1 << 1 | 1 << 2  # of linux/capability.h
_FOLDER_MODES = (0o000, 0o100, 0o300, 0o400, 0o500)
_FILE_MODES = (0o000, 0o200, 0o400)
_SEVERAL = ("features", "adapters/mood")  # outputs of one task after the other


def rights_bind() -> bool:
    """Whether rights count for this user, or can be made to: they do not for root."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            be_bound()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def take_rights(project: Path, work: Path, seed: str, index: int) -> str | None:
    """Run one command where one file or folder has lost rights; what was wrong, if anything was."""
    draw = random.Random(f"{seed}/rights/{index}")
    output = draw.choice(list(COMMANDS))
    words = [*COMMANDS[output].split(), "--overwrite"]
    _remove(work)
    shutil.copytree(project, work)
    whole = run_forked(words, work, work / ".log", be_bound)
    if whole.code != 0:
        raise RuntimeError(f"osrm {' '.join(words)}: {whole}")
    target = work / output
    finished = digest_tree(target)
    if draw.random() < 0.3:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    old = digest_tree(target) if target.exists() else None
    victim = draw.choice([target.parent, target, *_inside(target), *_inputs(work, words)])
    if not victim.exists():
        victim = target.parent
    mode, before = draw.choice(_FOLDER_MODES if victim.is_dir() else _FILE_MODES), victim.stat().st_mode
    victim.chmod(mode)
    outcome = run_forked(words, work, work / ".log", be_bound)
    if victim.exists():
        victim.chmod(before & 0o7777)
    told = f"{victim.relative_to(work)} with mode {mode:03o}, osrm {' '.join(words)}"
    new = digest_tree(target) if target.exists() else None
    if outcome.code not in (0, 1, 2) or "Traceback" in outcome.stderr or outcome.stderr.count("error: ") > 1:
        return f"{told}: {outcome}"
    if outcome.code == 0 and new != finished:
        return f"{told}: another output"
    is_said = outcome.stderr.lower().count("error: ") == 1
    if outcome.code and (not is_said or (new != old and output not in _SEVERAL)):
        return f"{told}: the old output has changed, or nothing is said: {outcome}"
    left = [path for path in work.rglob(".*.partial") if "unfinished" not in path.parts]
    return f"{told}: {left[0].name} is left" if left else None


def _inside(target: Path) -> list[Path]:
    """Some of what lies in an output."""
    return sorted(target.rglob("*"))[:6] if target.is_dir() else []


def _inputs(work: Path, words: list[str]) -> list[Path]:
    """What a command may read."""
    named = [work / word for word in words if (work / word).exists()]
    always = [work / name for name in ("base", "base/config.json", "base/model.safetensors", "data/mood", "osrm.toml")]
    first = [next(iter(sorted(folder.iterdir()))) for folder in named if folder.is_dir()]
    return [*named, *first, *always, work / "features", work / "features/mood.safetensors"]


def be_bound() -> None:
    """Let rights count for this process, also if it is root's: it gives up reading and writing whatever it likes.

    Raises:
        OSError: If the system does not let it.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for index in (0, 1):  # effective, permitted
        data[index] &= ~_READ_AND_WRITE_ALL
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _remove(work: Path) -> None:
    for folder, _, _ in os.walk(work):
        Path(folder).chmod(0o700)
    shutil.rmtree(work, ignore_errors=True)
