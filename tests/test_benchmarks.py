"""The benchmarks: how rows are judged, and that the scripts run. Nothing here looks at a clock."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from benchmarks import pages, report, timing, versions
from benchmarks.report import Row
from tests.run_cli import ROOT


def test_a_ratio_is_the_median_of_rounds_not_the_ratio_of_medians() -> None:
    row = Row("x", [1, 2, 10], "peer", [10, 8, 20], goal=4)
    assert row.ratio == 4  # of 10, 4 and 2
    assert row.met


def test_goals() -> None:
    assert Row("x", [1.1], "bound", [1.0], 1.15, "within").met
    assert not Row("x", [1.2], "bound", [1.0], 1.15, "within").met
    assert not Row("x", [1.0], "peer", [2.9], 3).met
    assert Row("x", [0.2], goal=0.3, kind="below").met
    assert Row("x", [0.2]).met is None


def test_a_row_without_its_peer_meets_no_goal() -> None:
    row = Row("x", [1.0], "peer: not installed", goal=5)
    assert row.met is None
    assert row.cells()[-2:] == ["", "at least 5, not measured"]


def test_rows_survive_their_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    rows = [
        Row("a | b", [1.0, 2.0], "peer", [3.0, 4.0], 1.5, difference="none"),
        Row("b", [1.0], "PEFT svd, scaled", [2.0]),
        Row("c", [5.0], theirs=[], unit="MiB"),
    ]
    setting = report.parser(None).parse_args(["--repeats", "2"])
    report.run("name", lambda _: rows, "Heading.\n", setting)
    assert report.load("name") == rows
    assert report.load_peers("name") == {"PEFT": importlib.metadata.version("peft")}
    table = capsys.readouterr().out
    assert table.startswith("Heading.\n\n| what |")
    assert "| a \\| b | 1.50 s | peer: 3.50 s | 2.50 | at least 1.5, met | none |" in table


def test_a_peers_version_is_read_in_its_own_environment(tmp_path, monkeypatch) -> None:
    for name, text in (("mergekit-yaml", ""), ("python", "echo $3 1.2")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.installed(["mergekit", "mergekit ties", "copy the base"]) == {"mergekit": "mergekit 1.2"}


def test_the_page_names_the_versions_of_peers(monkeypatch) -> None:
    monkeypatch.setattr(report, "load_peers", lambda name: {"PEFT": "1.2", "mergekit": "3"} if name == "ties" else {})
    assert pages.page().count("\n\nBeside PEFT 1.2, mergekit 3.\n\n") == 1


def test_rounds_run_in_turn() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    assert timing.in_turn(runs, 2) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert order == ["a", "b", "a", "b"]


def test_a_process_is_measured_without_its_parent() -> None:
    held = bytearray(300 << 20)
    assert timing.process([sys.executable, "-c", "pass"]).mebibytes < 100 < len(held)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        timing.process([sys.executable, "-c", "1 / 0"])


@pytest.mark.parametrize(("name", "text"), [("README.md", pages.readme), ("docs/benchmarks.md", pages.page)])
def test_documents_show_the_stored_rows(name, text) -> None:
    document = (ROOT / name).read_text(encoding="utf-8")
    assert document == pages.between(document, text())


def test_the_readme_has_five_rows_and_a_missed_goal() -> None:
    lines = pages.readme().splitlines()
    assert len(lines) == 2 + 5
    assert any("**missed**" in line for line in lines)


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks"):
        pages.between("text", "rows")


@pytest.mark.slow
def test_scripts_run(minilm: str) -> None:
    wanted = [
        word
        for name in ("start_up", "init", "penalty", "merge", "ties", "memory", "offload", "extract")
        for word in ("--only", name)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *wanted],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| what |") == 8
