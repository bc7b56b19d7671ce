"""Streams that are closed or full: the work is done, one line says what could not be said."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_cli import ROOT, listing

MERGE = f"{sys.executable} -m osrm_cli merge adapters/mood adapters/pair --out merged-again"


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("redirection", "reason"), [(">&-", "stdout is closed"), ("> /dev/full", "No space left")])
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_result_that_cannot_be_printed(project_copy: Path, redirection: str, reason: str, option: str) -> None:
    run = shell(f"{MERGE} {option} {redirection}", project_copy)
    assert run.returncode == 1
    first, hint = run.stderr.strip().splitlines()[-2:]
    assert first.startswith("error: the result cannot be printed")
    assert reason in first
    assert "is complete" in hint
    assert "Traceback" not in run.stderr
    assert (project_copy / "merged-again/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("words", ["--help", "--version", "merge --help", "merge --list"])
def test_help_that_cannot_be_printed(tmp_path: Path, words: str) -> None:
    run = shell(f"{sys.executable} -m osrm_cli {words} > /dev/full", tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith("error: the result cannot be printed: No space left")
    assert len(run.stderr.splitlines()) == 2


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_notes_may_be_lost(project_copy: Path, redirection: str) -> None:
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true\n", ""))
    run = shell(f"{MERGE} {redirection}", project_copy)
    assert run.returncode == 0
    assert run.stdout.startswith("merged-again: ")
    assert len(run.stdout.splitlines()) == 1
    assert (project_copy / "merged-again/adapter_model.safetensors").is_file()
    before = listing(project_copy)
    run = shell(f"{MERGE} {redirection}", project_copy)  # it exists already
    assert (run.returncode, run.stdout) == (1, "")
    assert listing(project_copy) == before


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    run = shell(f"{sys.executable} -m osrm_cli merge --list | head -1", tmp_path)
    assert run.stdout.startswith("method")
    assert "Traceback" not in run.stderr
