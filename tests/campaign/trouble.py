"""Full disks, closed and full streams, and eight writers and readers of one output at once."""

import os
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.campaign.damaged_inputs import digest_tree
from tests.campaign.forked import Outcome, collect_forked, run_forked, start_forked
from tests.campaign.killed import COMMANDS
from tests.campaign.project import ADAPTERS

WRITERS = 8


def fill_disk(project: Path, work: Path, seed: str, index: int) -> str | None:
    """Run one command where no file may grow beyond a random size, as on a full disk; what was wrong, if anything."""
    draw = random.Random(f"{seed}/disk/{index}")
    output = draw.choice(list(COMMANDS))
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(project, work)
    target = work / output
    old = (digest_tree(target) or None) if target.exists() else None  # an empty folder is no output
    limit = int(10 ** draw.uniform(1, 5))

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [*COMMANDS[output].split(), "--overwrite"]
    outcome = run_forked(words, work, work / ".log", restrict)
    told = f"files of at most {limit} bytes, osrm {' '.join(words)}"
    if outcome.code == 0:
        return None
    if outcome.code != 1 or "Traceback" in outcome.stderr or outcome.stderr.count("error: ") > 1:
        return f"{told}: {outcome}"
    new = (digest_tree(target) or None) if target.exists() else None
    several = output in (
        "features",
        "adapters/mood",
    )  # one task after the other; scores and logs are lost with a stream
    if new != old and not several:
        return f"{told}: the old output has changed"
    if left := list(work.rglob(".*.partial")):
        return f"{told}: {left[0].name} is left"
    return None


STREAMS = {"closed": None, "full": "/dev/full"}


def lose_streams(project: Path, work: Path, count: int) -> Iterator[str]:
    """Run commands with their streams closed or full: the output is the same, the exit code says what was lost."""
    for output, command in list(COMMANDS.items())[:count]:
        words = [*command.split(), "--overwrite"]
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(project, work)
        run_forked(words, work, work / ".log")
        whole = digest_tree(work / output)
        for kind, path in STREAMS.items():
            for number in (1, 2):

                def lose(number: int = number, path: str | None = path) -> None:
                    if path is None:
                        os.close(number)
                        setattr(sys, ("stdout", "stderr")[number - 1], None)  # as Python begins without the stream
                    else:
                        os.dup2(os.open(path, os.O_WRONLY), number)

                outcome = run_forked(words, work, work / ".log", lose)
                told = f"{('stdout', 'stderr')[number - 1]} {kind}, osrm {' '.join(words)}"
                if outcome.code not in (0, 1) or "Traceback" in outcome.stderr:
                    yield f"{told}: {outcome}"
                elif digest_tree(work / output) != whole:
                    yield f"{told}: another output"


def crowd(project: Path, work: Path, rounds: int) -> Iterator[str]:
    """Eight writers of one merge and eight readers of it at once, again and again."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(project, work)
    write = [*f"merge {ADAPTERS} --lambda 0.5".split(), "--overwrite"]
    expected = digest_tree(work / "merged") if run_forked(write, work, work / ".log").code == 0 else {}
    readers = ("verify merged", "eval merged --no-single --out scores-{}.json --overwrite")
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        commands = [write] * WRITERS + [readers[i % 2].format(i).split() for i in range(WRITERS)]
        pids = [start_forked(words, work, work / f".log{i}") for i, words in enumerate(commands)]
        for i, (pid, words) in enumerate(zip(pids, commands, strict=True)):
            outcome: Outcome = collect_forked(pid, work / f".log{i}")
            counts["done" if outcome.code == 0 else "refused"] += 1
            if outcome.code not in (0, 1) or "Traceback" in outcome.stderr:
                yield f"beside {len(pids) - 1} others, osrm {' '.join(words)}: {outcome}"
        if digest_tree(work / "merged") != expected:
            yield "after eight writers, the output is another one"
        if left := list(work.glob(".merged.*.partial")):
            yield f"after eight writers, {left[0].name} is left"
    print(f"  of {rounds} x {2 * WRITERS} runs at once: {counts['done']} done, {counts['refused']} refused in one line")
