"""The interference penalty that a start by ``gevd`` is trained with unless told otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run_cli import Run, osrm

TRAIN = ("--epochs", 1, "--lr", 0.05)


@pytest.fixture
def prepared(project_copy: Path) -> Path:
    """The project with a start of the default objective beside those that it has."""
    assert osrm("init", "--exclude", "mood", "--rank", 2, "--out", "default", cwd=project_copy).code == 0
    return project_copy


def settings(folder: Path) -> dict[str, Any]:
    """What the adapter of the task was trained with."""
    found: dict[str, Any] = json.loads((folder / "mood/osrm.json").read_text())["settings"]
    return found


def weights(folder: Path) -> bytes:
    return (folder / "mood/adapter_model.safetensors").read_bytes()


def train(folder: Path, start: str, out: str, *words: object) -> Run:
    run = osrm("train", f"{start}/mood", *TRAIN, "--out", out, *words, cwd=folder)
    assert run.code == 0, run
    return run


def test_a_start_by_gevd_is_trained_with_the_penalty(prepared: Path) -> None:
    """As if its weight had been given, and as it is recorded."""
    run = train(prepared, "default", "unsaid")
    assert run.stderr == ""
    train(prepared, "default", "said", "--interference-penalty", 3)
    train(prepared, "default", "none", "--interference-penalty", 0)
    assert settings(prepared / "unsaid") == settings(prepared / "said")
    assert settings(prepared / "unsaid")["interference_penalty"] == 3
    assert weights(prepared / "unsaid") == weights(prepared / "said") != weights(prepared / "none")
    read = json.loads((prepared / "unsaid/mood/osrm.json").read_text())["inputs"]
    assert {entry["path"] for entry in read} == {
        "default/mood",
        "features/pair.safetensors",
        "features/score.safetensors",
    }


@pytest.mark.parametrize("objective", ["kaiming", "random-orthonormal", "osrm", "eva"])
def test_other_starts_are_not(prepared: Path, objective: str) -> None:
    """Baselines and the paper's own objective stay what they are."""
    made = osrm("init", "--exclude", "mood", "--objective", objective, "--rank", 2, "--out", "other", cwd=prepared)
    assert made.code == 0
    train(prepared, "other", "unsaid")
    train(prepared, "other", "none", "--interference-penalty", 0)
    assert "interference_penalty" not in settings(prepared / "unsaid")
    assert weights(prepared / "unsaid") == weights(prepared / "none")


def test_features_that_are_missing_are_said_and_not_needed(prepared: Path) -> None:
    """A start may be trained where its features are not; whoever asks for the penalty gets an error."""
    run = train(prepared, "default", "unsaid", "--features", "nowhere")
    assert "default/mood is trained without the interference penalty: " in run.stderr
    assert "nowhere" in run.stderr
    assert "--interference-penalty 0" in run.stderr
    train(prepared, "default", "none", "--interference-penalty", 0)
    assert weights(prepared / "unsaid") == weights(prepared / "none")
    given = osrm("train", "default/mood", "--interference-penalty", 3, "--features", "nowhere", cwd=prepared)
    assert given.code == 1


def test_whole_weights_have_no_default(prepared: Path) -> None:
    train(prepared, "default", "whole", "--full")
    assert "interference_penalty" not in settings(prepared / "whole")


def test_the_unit_own_needs_a_weight(prepared: Path) -> None:
    """3 is a weight in units of the base model's energy."""
    run = osrm("train", "default/mood", "--penalty-unit", "own", cwd=prepared)
    assert run.code == 1
    assert "--penalty-unit own has no default weight" in run.error
    assert not (prepared / "adapters/.mood.training").exists()
