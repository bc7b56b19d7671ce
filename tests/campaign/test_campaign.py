"""The short, seeded part of the campaign; ``docs/reliability.md`` has the commands of the long one."""

import subprocess
import sys

import pytest

from tests.campaign.damage import split_safetensors
from tests.campaign.kinds import KINDS
from tests.run_cli import ROOT


@pytest.mark.slow
def test_a_short_campaign_finds_nothing() -> None:
    words = [sys.executable, "-m", "tests.campaign", "short", "--seed", "ci"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "30 of 30 damaged inputs" in run.stdout
    assert run.stdout.count("nothing found") == 6


def test_every_command_that_reads_files_is_in_the_campaign() -> None:
    from osrm_cli.cli.app import app

    commands = {command.split()[0] for _, lines in KINDS.values() for command in lines}
    assert commands == {command.name for command in app.registered_commands} - {"demo"}


def test_a_header_is_split_from_its_payload() -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    parsed, payload = split_safetensors(len(header).to_bytes(8, "little") + header + b"x")
    assert (parsed["a"]["shape"], payload) == ([1], b"x")
