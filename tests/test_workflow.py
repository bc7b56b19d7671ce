"""The workflow in ``workflow/``, run as a user runs it, on its smallest configuration."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.commands import of_kind
from tests.run_cli import ROOT

# The others are planned by the documents' own commands, in tests/documents.
DOCUMENTED = " ".join(of_kind("snakemake"))
CONFIGS = [path for path in sorted((ROOT / "config").glob("*.yaml")) if f"config/{path.name}" not in DOCUMENTED]

if importlib.util.find_spec("snakemake") is None:
    pytest.skip("snakemake is not installed", allow_module_level=True)


def snakemake(*words: object, cwd: Path) -> str:
    """Run the workflow in a folder; what it said."""
    program = Path(sys.executable).parent
    done = subprocess.run(
        [program / "snakemake", "-s", ROOT / "workflow/Snakefile", "--cores", "2", *words],
        cwd=cwd,
        env={**os.environ, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_other_configuration_makes_a_plan(config: Path, tmp_path: Path) -> None:
    """Every sweep of every arm is planned, from features to report."""
    plan = snakemake("--configfile", config, "--dry-run", "--printshellcmds", cwd=tmp_path)
    for rule in ("collect", "init", "train", "sweep", "report"):
        assert f"rule {rule}:" in plan
    trainings = [line for line in plan.splitlines() if "osrm train " in line]
    assert trainings
    assert all(" --features results/" in line for line in trainings)  # the default penalty reads them


@pytest.mark.parametrize("name", ["glue-minilm", "text-smollm2", "text-smollm2-small"])
def test_studies_compare_the_prediction_with_what_was_measured(name: str, tmp_path: Path) -> None:
    config = ROOT / f"config/{name}.yaml"
    plan = snakemake("--configfile", config, "--dry-run", cwd=tmp_path)
    diagnosed = plan.partition("rule diagnose:")[2].partition("rule ")[0]
    assert f"results/{name}/diagnoses/" in diagnosed
    assert "sweep.json" in diagnosed


@pytest.mark.slow
def test_smoke(minilm: str, tmp_path: Path) -> None:
    """From nothing to a report; then nothing to do; then only what a lost adapter and its sweep make necessary."""
    config = ("--configfile", ROOT / "config/smoke.yaml")
    snakemake(*config, cwd=tmp_path)
    home = tmp_path / "results/smoke"
    summary = json.loads((home / "sweeps/all/gevd/0/sweep.json").read_text())
    assert [point["options"]["lambda"] for point in summary["points"]] == [0.5, 1.0]
    assert {facts["train"]["interference_penalty"] for facts in summary["adapters"].values()} == {1}
    report = (home / "reports/main/report.md").read_text()
    assert "kaiming" in report
    assert "gevd" in report
    assert (home / "reports/main/report.html").stat().st_size > 10_000
    diagnosis = json.loads((home / "diagnoses/kaiming/diagnosis.json").read_text())
    assert diagnosis["measured"]
    assert "interference" in report
    assert "Nothing to be done" in snakemake(*config, cwd=tmp_path)
    for lost in ("adapters/gevd/0/mini-mood", "sweeps/all/gevd/0"):
        shutil.rmtree(home / lost)
    plan = snakemake(*config, "--dry-run", cwd=tmp_path)
    assert plan.count("rule train:") == 1
    assert plan.count("rule sweep:") == 1
    assert "rule init:" not in plan
