"""All commands of all documents: lines of shell blocks, and what stands between backticks.

A line of several commands (``&&``) counts as each of them. Every command is of one kind (``KINDS``), and every kind has
a test in this folder that runs its commands.
"""

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from osrm_cli.cli.app import app
from tests.run_cli import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "studies").glob("*/README.md")),
]
SHELLS = ("sh", "bash", "shell", "console")
# What a line begins with that is a command: by these, commands are found between backticks.
PROGRAMS = (
    *("osrm", "python", "python3", "pip", "pytest", "mkdocs", "snakemake", "accelerate", "torchrun"),
    *("git", "apt-get", "pre-commit", "ruff", "mypy", ".ci/run"),
    *("sudo", "bash", "sh", "make", "curl", "wget", "conda", "uv", "docker", "kubectl", "sbatch", "srun", "mpirun"),
    *("hf", "huggingface-cli", "lm_eval", "vllm", "mergekit-yaml"),
)
KINDS = {
    "osrm": r"osrm .+",
    "folder": r"cd \S+",
    "snakemake": r"snakemake .+",
    "script": r"python (-m scripts\.|scripts/)\w.*",
    "campaign": r"python -m tests\.campaign .+",
    "benchmarks": r"python -m benchmarks\b.*",
    "cluster": r"python -m tests\.cluster\.slurm .+",
    "module": r"python -m osrm_cli",
    "tutorial": r"python make_data\.py|head -n 3 data/\*/dev\.csv",
    "environment": r"python -m venv \.venv",
    "pip": r"pip install .+",
    "packages": r"apt-get install .+",
    "pytest": r"pytest .+",
    "checks": r"\.ci/run|ruff format|mypy --strict|pre-commit install .+",
    "site": r"mkdocs serve",
    "commit": r"git checkout [0-9a-f]+",
    "launcher": r"(accelerate launch|torchrun).*",
}
_FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Attributes:
        page: Its page, from the root of the repository.
        line: The command, without a comment, a prompt, the folder of its program and variables before it.
        block: Which shell block of the page has it; ``None`` between backticks.
    """

    page: str
    line: str
    block: int | None

    @property
    def words(self) -> list[str]:
        """As a shell splits it."""
        return shlex.split(self.line)

    @property
    def kinds(self) -> list[str]:
        """Names of ``KINDS`` that it is of: one."""
        return [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, self.line)]


@dataclass(frozen=True)
class Block:
    """A shell block: its lines, without prompts and what is printed, continued lines joined."""

    page: str
    number: int
    heading: str
    lines: tuple[str, ...]


def name_of(page: Path) -> str:
    """From the root of the repository."""
    return page.relative_to(ROOT).as_posix()


@functools.cache
def find_blocks() -> tuple[Block, ...]:
    """All shell blocks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for number, match in enumerate(m for m in _FENCED.finditer(text) if m[2] in SHELLS):
            lines = match[3].replace("\\\n", " ").splitlines()
            if match[2] == "console":
                lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            heading = re.findall(r"^#+ (.*)$", text[: match.start()], re.M)[-1]
            found.append(Block(name_of(page), number, heading, tuple(line.strip() for line in lines if line.strip())))
    return tuple(found)


def find_other_blocks() -> list[tuple[str, str]]:
    """Page and text of the blocks that are no shell's."""
    texts = [(name_of(page), page.read_text(encoding="utf-8")) for page in PAGES]
    return [(name, match[3]) for name, text in texts for match in _FENCED.finditer(text) if match[2] not in SHELLS]


@functools.cache
def find_commands() -> tuple[Command, ...]:
    """All commands, page by page."""
    found = [
        Command(block.page, command, block.number)
        for block in find_blocks()
        for line in block.lines
        for command in split_line(line)
    ]
    for page in PAGES:
        text = _FENCED.sub("", page.read_text(encoding="utf-8"))
        for span in _INLINE.findall(text):
            commands = split_line(_with_program(" ".join(span.split())))
            if commands and commands[0].partition(" ")[0] in PROGRAMS and " " in commands[0]:
                found += [Command(name_of(page), command, None) for command in commands]
    return tuple(found)


def _with_program(span: str) -> str:
    """Commands of ``osrm`` and parts of the campaign, which the text names without their program."""
    if span.partition(" ")[0] in {command.name for command in app.registered_commands} and " --" in span:
        return f"osrm {span}"
    if re.fullmatch(r"(damage|kill|disk|rights|crowd) \d+.*", span):
        return f"python -m tests.campaign {span}"
    return span


def split_line(line: str) -> list[str]:
    """The commands of a line, as ``Command.line`` has them; none if a shell could not read it."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"[A-Z_]+=\S*", word):
            commands[-1].append(word)
    for command in commands:
        if command:
            command[0] = command[0].removeprefix(".venv/bin/").replace("python3", "python")
    return [_join(command) for command in commands if command]


def _join(words: list[str]) -> str:
    """As ``shlex.join``, but that patterns such as ``adapters/*`` stay what they are."""
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./*<>~-]+", word) else shlex.quote(word) for word in words)


def of_kind(kind: str) -> list[str]:
    """Every line of a kind, once."""
    return list(dict.fromkeys(command.line for command in find_commands() if kind in command.kinds))
