"""The campaign: ``damage 10000 --seed 1``; also ``kill``, ``disk``, ``rights``, ``streams``, ``crowd``, ``short``."""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.campaign.damaged_inputs import BAD, Bench, Case, Honest
from tests.campaign.forked import import_everything, warm_up
from tests.campaign.killed import kill_one
from tests.campaign.project import build_project
from tests.campaign.rights import rights_bind, take_rights
from tests.campaign.trouble import crowd, fill_disk, lose_streams

_PARTS = ("damage", "kill", "disk", "rights", "streams", "crowd")
_SHORT = {"damage": 30, "kill": 4, "disk": 4, "rights": 4, "streams": 2, "crowd": 1}  # less than a minute
_FEW = 100  # cases that measure undamaged inputs as they need them
_ONE_BY_ONE = {"kill": kill_one, "disk": fill_disk, "rights": take_rights}


def main() -> None:
    """Run one part of the campaign; exit code 1 if it has found anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("part", choices=(*_PARTS, "short"), help="short: some of each")
    parser.add_argument("count", type=int, nargs="?", default=50, help="cases, kills, commands, or rounds of a crowd")
    parser.add_argument("--seed", default="0", help="what decides every case")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--folder", type=Path, help="folder to work in; it keeps the project for further runs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no damage after; run again to go on")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--only", type=int, help="this case alone")
    given = parser.parse_args()
    began = time.monotonic()
    import_everything()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        project = folder / "project"
        if not project.exists():
            build_project(project)
        warm_up(project / "base")
        found = []
        for part, count in _SHORT.items() if given.part == "short" else [(given.part, given.count)]:
            found += _run(part, count, given, project, folder)
            print(f"{part}: {'; '.join(found) or 'nothing found'}; {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if found else 0)


def _run(part: str, count: int, given: argparse.Namespace, project: Path, folder: Path) -> list[str]:
    first, count = (given.first, count) if given.only is None else (given.only, 1)
    indices = range(first, first + count)
    if part == "damage":
        return _damage(indices, given, project, folder)
    if part == "rights" and not rights_bind():
        print("  skipped: rights do not bind this user, and the system does not let it be bound")
        return []
    work = folder / f"work-{part}-{os.getpid()}"
    try:
        if one := _ONE_BY_ONE.get(part):
            return [f"{index}: {bad}" for index in indices if (bad := one(project, work, given.seed, index))]
        return list(lose_streams(project, work, count) if part == "streams" else crowd(project, work, count))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _damage(indices: Sequence[int], given: argparse.Namespace, project: Path, folder: Path) -> list[str]:
    rows = folder / f"cases-{given.seed}.jsonl"
    done = {case.index for case in _read_cases(rows)} if given.only is None else set()
    left = [index for index in indices if index not in done]
    honest = _measure_honest(project, folder) if len(left) > _FEW else {}
    end = time.monotonic() + 60 * given.minutes
    pids = [_start_job(left[job :: given.jobs], job, given.seed, honest, end, folder) for job in range(given.jobs)]
    failed = [pid for pid in pids if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    cases = [case for case in _read_cases(rows) if case.index in indices]
    counts = Counter(case.verdict for case in cases)
    told = ", ".join(f"{n} {v}" for v, n in counts.most_common())
    print(f"  seed {given.seed}: {len(cases)} of {len(indices)} damaged inputs: {told}")
    silent = Counter(case.region for case in cases if case.verdict == "differs")
    told = ", ".join(f"{n} {r}" for r, n in silent.most_common())
    print(f"  accepted with another output, by what was damaged: {told}")
    bad = [case for case in cases if case.verdict in BAD]
    found = [f"{c.index} {c.verdict}: {c.file} [{c.damage}] osrm {c.command}: {c.detail}\n" for c in bad]
    return [*found, *("a process of the campaign failed" for _ in failed)]


def _read_cases(rows: Path) -> list[Case]:
    """The cases of a seed that have been run; of one that was run again, the last."""
    if not rows.exists():
        return []
    cases = [Case(**json.loads(line)) for line in rows.read_text().splitlines()]
    return list({case.index: case for case in cases}.values())


def _measure_honest(project: Path, folder: Path) -> dict[str, Honest]:
    """What undamaged inputs give: measured once for a folder."""
    kept = folder / "honest.json"
    if not kept.exists():
        work = folder / f"work-honest-{os.getpid()}"
        bench = Bench(Path(shutil.copytree(project, work)), "")
        bench.measure(bench.list_commands())
        shutil.rmtree(work)
        kept.write_text(json.dumps({command: asdict(honest) for command, honest in bench.honest.items()}))
    return {command: Honest(**honest) for command, honest in json.loads(kept.read_text()).items()}


def _start_job(indices: Sequence[int], job: int, seed: str, honest: dict[str, Honest], end: float, folder: Path) -> int:
    """Run some of the cases in a process of their own; its id."""
    if pid := os.fork():
        return pid
    code = 1
    work = folder / f"work-{seed}-{job}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        bench = Bench(Path(shutil.copytree(folder / "project", work)), seed, honest)
        with (folder / f"cases-{seed}.jsonl").open("a", buffering=1) as file:
            for index in indices:
                if time.monotonic() > end:
                    break
                file.write(json.dumps(asdict(bench.run(index))) + "\n")
        shutil.rmtree(work)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
