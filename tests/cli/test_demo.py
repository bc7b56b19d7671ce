"""The demo, as a newcomer runs it."""

from pathlib import Path

import pytest

from tests.run_cli import process


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
