"""The model card as the hub reads it: library, base model, and what ``osrm eval`` has found."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.run_cli import osrm


@pytest.mark.parametrize(("form", "library"), [("adapter", "peft"), ("model", "transformers")])
def test_library(project_copy: Path, form: str, library: str) -> None:
    assert osrm("merge", "adapters/mood", "adapters/pair", "--as", form, "-o", "m", cwd=project_copy).code == 0
    assert ModelCard.load(project_copy / "m/README.md").data.library_name == library


def test_scores_are_those_of_the_last_evaluation(project_copy: Path) -> None:
    before = ModelCard.load(project_copy / "merged/README.md")
    for words in (("--limit", 8), ("--overwrite",)):
        assert osrm("eval", "merged", *words, cwd=project_copy).code == 0
    card = ModelCard.load(project_copy / "merged/README.md")
    assert card.data.base_model == before.data.base_model
    assert card.text.startswith(before.text.rstrip("\n"))
    assert card.text.count("## Scores") == 1
    scores = json.loads((project_copy / "merged/scores.json").read_text())["tasks"]
    found = {(row.dataset_name, row.metric_name): row.metric_value for row in card.data.eval_results}
    assert found == {
        (task, metric): round(value, 2) for task, row in scores.items() for metric, value in row["metrics"].items()
    }
    assert {row.metric_type for row in card.data.eval_results} == {"accuracy", "pearsonr", "spearmanr"}
    first = (project_copy / "merged/README.md").read_bytes()
    assert osrm("eval", "merged", "--overwrite", cwd=project_copy).code == 0
    assert (project_copy / "merged/README.md").read_bytes() == first


def test_scores_of_a_merge_are_not_those_of_its_calibration(project_copy: Path) -> None:
    plain = (project_copy / "merged/README.md").read_text()
    assert osrm("eval", "merged", cwd=project_copy).code == 0
    assert osrm("calibrate", "merged", "--samples", 12, cwd=project_copy).code == 0
    card = ModelCard.load(project_copy / "calibrated/README.md")
    assert "## Calibrated" in card.text
    assert card.text.startswith(ModelCard(plain).text.rstrip("\n"))
    assert card.data.eval_results is None
    assert "## Scores" not in card.text


def test_scores_written_elsewhere_leave_the_card_alone(project_copy: Path) -> None:
    before = (project_copy / "merged/README.md").read_bytes()
    assert osrm("eval", "merged", "-o", "scores.json", cwd=project_copy).code == 0
    assert (project_copy / "merged/README.md").read_bytes() == before


def test_a_card_that_cannot_be_read_is_said_and_stays(project_copy: Path) -> None:
    path = project_copy / "merged/README.md"
    path.write_text("---\na: [\n---\nmine\n")
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true", ""))
    run = osrm("eval", "merged", cwd=project_copy)
    assert run.code == 0
    assert "merged/README.md: the scores could not be added" in run.stderr
    assert path.read_text().endswith("mine\n")
    assert (project_copy / "merged/scores.json").is_file()
