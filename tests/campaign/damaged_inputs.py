"""One damaged file a case: what does the command that reads it do?"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.damage import damage, split_safetensors
from tests.campaign.forked import TRACEBACK, Outcome, run_forked
from tests.campaign.kinds import KINDS

WEIGHTS = {"adapters": 5, "features": 3, "merged": 3, "base": 3, "data": 3, "starts": 2}
BAD = ("traceback", "untidy", "nonfinite", "hang", "memory")
_PICTURE = re.compile(r".*\.png$|README\.md$")
# Of a base model, into a merged one.
_HANDED_ON = re.compile(r"config\.json|generation_config\.json|tokenizer.*|special_tokens_map\.json")
_NONFINITE = re.compile(rb"[:\[,]\s*-?(NaN|Infinity)\b")
_MEMORY_FACTOR = 2.0
_SLACK_MIB, _SLACK_SECONDS = 256, 10


@dataclass(frozen=True)
class Case:
    """What was damaged, and what came of it.

    Attributes:
        verdict: ``same`` (the output is that of the undamaged file), ``differs``, ``error`` (exit 1 and one line),
            ``usage`` (exit 2), or one of ``BAD``.
    """

    index: int
    file: str
    damage: str
    region: str
    command: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Honest:
    """What a command does with undamaged inputs: digests of its output, seconds of a CPU, MiB."""

    output: dict[str, str] | None
    seconds: float
    mebibytes: float


@dataclass
class Bench:
    """A copy of the project to damage, and what undamaged inputs give."""

    work: Path
    seed: str
    honest: dict[str, Honest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tree = _list_tree(self.work)
        self._unfinished = _read_tree(self.work / "unfinished")

    def measure(self, commands: Iterable[str]) -> None:
        """Run commands with undamaged inputs.

        Raises:
            RuntimeError: If one fails.
        """
        for command in commands:
            outcome, output = self._run(command)
            if outcome.code != 0:
                raise RuntimeError(f"the undamaged input fails: osrm {command}: {outcome}")
            self.honest[command] = Honest(output, outcome.seconds, outcome.mebibytes)
            self._restore()

    def list_commands(self) -> list[str]:
        """Every command that a case may run."""
        return sorted(
            {
                self._fill(command, path)
                for patterns, commands in KINDS.values()
                for path in self._find(patterns)
                for command in commands
            }
        )

    def run(self, index: int) -> Case:
        """Damage one file, run one command that reads it, and put everything back."""
        draw = random.Random(f"{self.seed}/{index}")
        patterns, commands = KINDS[draw.choice([kind for kind in KINDS for _ in range(WEIGHTS.get(kind, 1))])]
        path = draw.choice(self._find(patterns))
        command = self._fill(draw.choice(commands), path)
        name = path.relative_to(self.work).as_posix()
        everything = sorted(self.work / name for name, (size, _) in self._tree.items() if size < 300_000)
        alike = [p for p in everything if p.suffix == path.suffix and p != path]
        content = path.read_bytes()
        new, what, region = damage(path, draw, alike if alike and draw.random() < 0.6 else everything)
        if command not in self.honest:
            self.measure([command])
        path.write_bytes(new)
        self._tree[name] = _state(path)
        outcome, output = self._run(command)
        verdict, detail = self._judge(name, command, outcome, output)
        self._restore()
        path.write_bytes(content)
        self._tree[name] = _state(path)
        return Case(index, name, what, region, command, verdict, detail)

    def _find(self, patterns: Iterable[str]) -> list[Path]:
        found = {path for pattern in patterns for path in self.work.glob(pattern) if path.is_file()}
        return sorted(path for path in found if not _PICTURE.match(path.name))

    def _fill(self, command: str, path: Path) -> str:
        command = command.replace("OUT", "CASE/out").replace("FILE", path.relative_to(self.work).as_posix())
        return command.replace("TASK", path.parent.name)

    def _target(self, command: str) -> Path:
        if "--resume" in command:
            return self.work / "unfinished/mood"
        return self.work / ("CASE/out.safetensors" if "CASE/out.safetensors" in command else "CASE/out")

    def _run(self, command: str) -> tuple[Outcome, dict[str, str] | None]:
        (self.work / "CASE").mkdir(exist_ok=True)
        outcome = run_forked(command.split(), self.work, self.work / "CASE/log")
        target = self._target(command)
        return outcome, digest_tree(target) if target.exists() else None

    def _restore(self) -> None:
        shutil.rmtree(self.work / "CASE", ignore_errors=True)
        if _read_tree(self.work / "unfinished") == self._unfinished:
            return
        shutil.rmtree(self.work / "unfinished", ignore_errors=True)
        for name, content in self._unfinished.items():
            path = self.work / "unfinished" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _judge(self, file: str, command: str, outcome: Outcome, output: dict[str, str] | None) -> tuple[str, str]:
        honest = self.honest[command]
        lines = [line for line in outcome.stderr.splitlines() if not line.startswith("warning:")]
        if outcome.code == TRACEBACK or "Traceback (most recent" in outcome.stderr:
            return "traceback", explain_traceback(outcome.stderr)
        if outcome.code == "hang" or outcome.seconds > 10 * honest.seconds + _SLACK_SECONDS:
            return "hang", f"{outcome.seconds:.1f} s, undamaged {honest.seconds:.1f} s"
        if isinstance(outcome.code, str) or outcome.code < 0:
            return "memory", str(outcome.code)
        if outcome.mebibytes > _MEMORY_FACTOR * honest.mebibytes + _SLACK_MIB:
            return "memory", f"{outcome.mebibytes:.0f} MiB, undamaged {honest.mebibytes:.0f} MiB"
        if Path("PWNED").exists() or (self.work / "PWNED").exists():
            return "untidy", "code of a file was run"
        if touched := self._find_touched():
            return "untidy", f"left, gone or changed: {touched[:3]}"
        if outcome.code == 1:
            kinds = [line.partition(":")[0] for line in lines]
            if kinds not in (["error"], ["error", "hint"]):
                return "untidy", " | ".join(lines)[:300]
            several = command.count(" starts/") > 1 or command.startswith("collect")  # one task after the other
            return ("untidy", "output left") if output is not None and not several else ("error", lines[0])
        if outcome.code != 0:
            return ("usage", "") if outcome.code == 2 else ("untidy", f"exit {outcome.code}")
        base = self.work / file if file.startswith(("base", "experts/")) else None
        if bad := list(find_nonfinite(self._target(command), base)):
            return "nonfinite", bad[0]
        return ("same", "") if output == honest.output else ("differs", "")

    def _find_touched(self) -> list[str]:
        """Files beside the output that a run has left, removed or changed."""
        after = _list_tree(self.work)
        names = {name for name in self._tree.keys() | after.keys() if self._tree.get(name) != after.get(name)}
        return sorted(name for name in names if not name.startswith(("CASE/", "unfinished/")))


def explain_traceback(stderr: str) -> str:
    """The last place in this program, and the exception."""
    frames = re.findall(r'File "[^"]*osrm_cli/([^"]+)", line (\d+), in (\S+)', stderr) or [("?", "?", "?")]
    return f"{stderr.strip().splitlines()[-1][:200]} in {':'.join(frames[-1])}"


def _list_tree(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    return {
        Path(folder, name).relative_to(root).as_posix(): _state(Path(folder, name))
        for folder, _, files in os.walk(root)
        for name in files
    }


def _state(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_size, status.st_mtime_ns


def _read_tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def digest_tree(root: Path) -> dict[str, str]:
    """Digests of an output's files, without the digests of inputs that they record."""
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(_without_digests(path)).hexdigest() for path in files}


def _without_digests(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        header, payload = split_safetensors(content)
        return re.sub(rb"[0-9a-f]{64}", b"", json.dumps(header, sort_keys=True).encode()) + payload
    return re.sub(rb"[0-9a-f]{12,64}", b"", content)


def _is_of(base: Path | None, name: str, tensor: Any) -> bool:
    """Whether a file of a base model holds this tensor, NaN aside."""
    import torch
    from safetensors.torch import load

    held = load(base.read_bytes()) if base and base.suffix == ".safetensors" else {}
    return name in held and torch.equal(tensor, held[name])


def find_nonfinite(root: Path, base: Path | None) -> Iterator[str]:
    """Tensors and records of an output that hold NaN or infinity; infinity of a base model's file is handed on."""
    import torch
    from safetensors.torch import load

    files = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            for name, tensor in load(content).items():
                if tensor.is_floating_point() and not (torch.isfinite(tensor).all() or _is_of(base, name, tensor)):
                    yield f"{path.name}: {name}"
        elif (
            path.suffix == ".json"
            and not _HANDED_ON.match(path.name)
            and re.search(rb"[:\[,]\s*-?(NaN|Infinity)\b", content)
        ):
            yield path.name
