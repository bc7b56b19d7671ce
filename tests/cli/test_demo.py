"""The demo, as a newcomer runs it."""

from dataclasses import replace
from pathlib import Path

import pytest

from osrm_cli.cli.commands import demo
from tests.run_cli import osrm, process


@pytest.mark.slow
def test_demo_ends_with_a_table_and_a_picture(minilm: str, tmp_path: Path) -> None:
    run = process("demo", cwd=tmp_path)
    assert run.code == 0, run.stderr
    for command in ("collect", "init", "train", "merge", "eval"):
        assert f"$ osrm {command} " in run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if line.split()[:1] and "mini-" in line.split()[0]]
    assert len(rows) == 8
    singles = [float(value) for row in rows for value in (row[1], row[3])]
    assert min(singles) > 60
    average = next(line.split() for line in run.stdout.splitlines() if line.split()[:1] == ["average"])
    assert float(average[1]) > float(average[2]) + 3  # plain merging visibly hurts
    assert (tmp_path / "osrm-demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
    again = process("demo", cwd=tmp_path)
    assert again.code == 1
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_the_text_demo_in_small(smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command on the real model, from a few rows: whatever the scores."""
    train = "--limit 8 --epochs 1 --lr 4e-3 --batch-size 8 --dev-limit 2"
    monkeypatch.setattr(demo, "_TEXT", replace(demo._TEXT, collect="--samples 4 ", train=train, evaluate=" --limit 2"))
    run = osrm("demo", "--text", cwd=tmp_path)
    assert run.code == 0, run.stderr
    assert run.stderr.count("$ osrm train ") == 2
    assert "$ osrm init --each --objective gevd --out starts/osrm " in run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if line.split()[:1] and "mini-" in line.split()[0]]
    assert [row[0] for row in rows] == ["mini-denial", "mini-json", "mini-sql", "mini-steps"]
    assert (tmp_path / "osrm-demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
