"""Run the program as a user does: another process, or the same one where many runs would cost too much."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """What came of it."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line that begins with ``error:``."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        if len(lines) != 1:
            raise AssertionError(f"{len(lines)} error lines, expected one:\n{self.stderr}\n{self.stdout}")
        return lines[0].removeprefix("error: ")


def osrm(*words: object, cwd: Path, env: dict[str, str] | None = None) -> Run:
    """Run ``osrm`` in this process, in ``cwd``; a bug raises."""
    from osrm_cli.cli.app import app

    before = Path.cwd()
    os.chdir(cwd)
    try:
        found = CliRunner().invoke(app, [str(word) for word in words], env=env)
    finally:
        os.chdir(before)
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Run(found.exit_code, found.stdout, found.stderr)


def process(*words: object, cwd: Path, env: dict[str, str] | None = None) -> Run:
    """Run ``osrm`` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "osrm_cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def listing(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
