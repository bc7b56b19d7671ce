"""Pipes, devices and links in circles where a command reads: refused at once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_cli import osrm

CASES = {
    "merge --recipe pipe --out o": "pipe is a pipe",
    "merge --recipe zero --out o": "zero is a device",
    "report pipe --out o": "pipe is a pipe",
    "report zero --out o": "zero is a device",
    "diagnose features adapters/mood adapters/pair --scores pipe --out o": "pipe is a pipe",
    "verify pipe.json": "pipe.json",
}


@pytest.mark.parametrize("command", CASES)
def test_given_by_name(project_copy: Path, command: str) -> None:
    for name in ("pipe", "pipe.json"):
        os.mkfifo(project_copy / name)
    (project_copy / "zero").symlink_to("/dev/zero")
    run = osrm(*command.split(), cwd=project_copy)
    assert run.code == 1
    assert CASES[command] in run.error + run.stdout


PLACES = {
    "adapters/mood/osrm.json": "merge adapters/mood adapters/pair --out o",
    "adapters/mood/adapter_config.json": "merge adapters/mood adapters/pair --out o",
    "adapters/mood/adapter_model.safetensors": "merge adapters/mood adapters/pair --out o",
    "adapters/mood/adapter_model.safetensors.index.json": "eval adapters/pair --out o",
    "features/mood.safetensors": "init --each --out o",
    "merged/tasks/mood/osrm.json": "eval merged --out o",
    "merged/merge.yaml": "calibrate merged --samples 12 --out o",
}


@pytest.mark.parametrize("place", PLACES)
def test_inside_of_an_artifact(project_copy: Path, place: str) -> None:
    path = project_copy / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    run = osrm(*PLACES[place].split(), cwd=project_copy)
    if place.endswith("index.json"):  # another adapter's
        assert run.code == 0
        return
    assert run.code == 1
    assert path.name in run.error


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json"])
def test_inside_of_a_base_model(
    project_copy: Path, tiny_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    base = shutil.copytree(tiny_model("bert"), tmp_path / "base")
    (base / name).unlink(missing_ok=True)
    os.mkfifo(base / name)
    run = osrm("collect", "--task", "mood", "--samples", 4, "--model", base, "--out", "o", cwd=project_copy)
    assert (run.code, run.error) == (1, f"{base / name} is a pipe, expected a file")


@pytest.mark.parametrize("command", ["eval merged", "calibrate merged --samples 12"])
def test_links_that_lead_back(project_copy: Path, command: str) -> None:
    for name in ("self", "again"):
        (project_copy / "merged/tasks" / name).symlink_to(".")
    run = osrm(*command.split(), cwd=project_copy)
    assert (run.code, run.error) == (1, "merged/tasks/again is a link to a folder, expected a folder")
