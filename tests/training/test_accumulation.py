"""Batches whose gradients are added up have the loss of one large batch, and its penalty once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_cli import osrm


def losses(folder: Path, *words: object) -> list[float]:
    run = osrm("train", "starts/" + folder.name, "--epochs", 3, "--limit", 16, "--dropout", 0, *words, "--out", "a",
               "--overwrite", "--quiet", "--interference-penalty", 1000, "--lr", 0.01, cwd=folder)  # fmt: skip
    assert run.code == 0, run.stderr
    return [loss for _, loss in json.loads((folder / "a" / folder.name / "training.json").read_text())["losses"]]


@pytest.mark.parametrize(("task", "family"), [("mood", "bert"), ("mood", "llama"), ("same", "llama"), ("same", "gpt2")])
def test_accumulated_loss(
    task: str,
    family: str,
    tiny_model: Callable[[str], Path],
    tiny_writer: Callable[[str], Path],
    text_tasks: Path,
    completion_tasks: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / task
    folder.mkdir()
    model, data = (tiny_writer, completion_tasks) if task == "same" else (tiny_model, text_tasks)
    (folder / "osrm.toml").write_text(f'model = "{model(family)}"\ndata = "{data}"\ndtype = "float32"\nquiet = true\n')
    assert osrm("collect", "--samples", 10, cwd=folder).code == 0
    assert osrm("init", "--each", "--objective", "kaiming", cwd=folder).code == 0
    whole = losses(folder, "--batch-size", 16)
    assert len(whole) == 3  # B is zero in the first step alone, and with it the penalty
    assert losses(folder, "--batch-size", 4, "--gradient-accumulation", 4) == pytest.approx(whole, rel=1e-4)
    checkpointed = losses(folder, "--batch-size", 16, "--gradient-checkpointing")
    assert checkpointed == pytest.approx(whole, rel=1e-4)
