"""Run a line of the documents in a folder as a shell would, with tiny models in the place of real ones."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from tests.documents.commands import split_line
from tests.run_cli import osrm


def run_lines(lines: tuple[str, ...], folder: Path, stand_ins: Mapping[str, object]) -> int:
    """Run the ``osrm`` commands of a block, from the folder that its ``cd`` leads to; what is there is replaced.

    ``stand_ins``: other words for some, as a tiny model's folder for ``minilm``. Lines of other programs have tests of
    their own.

    Returns:
        How many commands ran.
    """
    count = 0
    for line in lines:
        for command in split_line(line):
            words = [str(stand_ins.get(word, word)) for word in shlex.split(command)]
            if words[0] == "cd":
                folder = folder / words[1]
            if words[0] == "osrm":
                run_osrm(words[1:], folder)
                count += 1
    return count


def run_osrm(words: list[str], folder: Path) -> None:
    """Run ``osrm`` with patterns expanded; what is there already is replaced."""
    expanded = [each for word in words for each in _expand(word, folder)]
    replaces = [] if words[0] == "verify" else ["--overwrite"]
    run = osrm(*expanded, *replaces, cwd=folder)
    assert run.code == 0, (words, run)


def _expand(word: str, folder: Path) -> list[str]:
    found = sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else []
    return found or [word]
