"""``osrm`` between backticks: commands and options exist, and what is said whole is checked by the program itself.

A mention leaves out what its sentence says. Here it is given the README's adapters, and ``--dry-run``, which checks all
that the command would check, and writes nothing.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from osrm_cli.cli.app import app
from tests.documents.commands import find_commands, of_kind
from tests.documents.running import run_osrm
from tests.run_cli import osrm

COMMANDS: Mapping[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
MENTIONS = list(dict.fromkeys(c.line for c in find_commands() if c.block is None and "osrm" in c.kinds))
# What stands in the place of arguments that are left out.
ARGUMENTS = {
    "merge": ("adapters/*",),
    "sweep": ("adapters/*", "--lambda", "0.3"),
    "retrofit": ("adapters/*", "--features", "features"),
    "train": ("starts/*",),
    "init": ("--each",),
    "extract": ("minilm", "sst2-model"),
}


def _options(name: str) -> dict[str, Any]:
    return {option: p for p in COMMANDS[name].params for option in (*p.opts, *p.secondary_opts)}


def _is_whole(line: str) -> bool:
    """Whether something can be run: neither a name alone, nor a pattern (``FILE``), nor an option without its value."""
    words = line.split()
    if len(words) < 3 or words[1] not in COMMANDS or re.search(r"\b[A-Z]{2,}\b", line) or words[1] == "demo":
        return False
    last = _options(words[1]).get(words[-1])
    return last is None or last.is_flag


@pytest.mark.parametrize("line", of_kind("osrm"))
def test_the_command_and_its_options_exist(line: str) -> None:
    words = line.split()
    if words[1].startswith("-"):
        top = {option for parameter in get_command(app).params for option in parameter.opts} | {"--help"}
        assert set(words[1:]) <= top
    elif words[1] != "COMMAND":
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
        assert options - {"--help"} <= _options(words[1]).keys()


def test_help_and_version(tmp_path: Path) -> None:
    for line in MENTIONS:
        if re.fullmatch(r"osrm --(help|version)", line):
            assert osrm(*line.split()[1:], cwd=tmp_path).code == 0


@pytest.fixture(scope="module")
def folder(pipeline: Path, stand_ins: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files, a fully fine-tuned model, and data of one's own without a dev split; nothing is written."""
    folder = Path(shutil.copytree(pipeline, tmp_path_factory.mktemp("mentions") / "work"))
    run_osrm(["merge", "adapters/sst2", "--as", "model", "--out", "sst2-model"], folder)
    for task in ("sst2", "mrpc"):
        (folder / "own" / task).mkdir(parents=True)
        shutil.copy(folder / f"data/{task}/train.jsonl", folder / f"own/{task}/train.jsonl")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in MENTIONS if _is_whole(line)])
def test_a_mention_is_checked(
    line: str, folder: Path, writers: Path, stand_ins: Mapping[str, Path], tmp_path: Path
) -> None:
    _, name, *words = line.split()
    if words == ["--list"]:
        return run_osrm([name, *words], folder)
    if words[0].startswith("-"):
        words = [*ARGUMENTS.get(name, ()), *words]
    if name == "eval" and "--base" in words:  # of text tasks alone
        folder = tmp_path
        shutil.copytree(writers, folder, dirs_exist_ok=True)
        run_osrm(["merge", "made/*", "--out", "merged"], folder)
    words = [str(stand_ins.get(word, word)) for word in words]
    dry = ["--dry-run"] if "--dry-run" in _options(name) and "--dry-run" not in words else []
    run_osrm([name, *words, *dry], folder)
    return None
