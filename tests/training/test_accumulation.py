"""Batches whose gradients are added up have the loss of one large batch, and its penalty once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osrm_cli.training import completion_trainer
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("penalty", [0, 1000])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_parts_of_a_batch_train_the_same_adapter(
    family: str,
    penalty: int,
    accumulation: int,
    tiny_writer: Callable[[str], Path],
    completion_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward passes see no more tokens than they may, unless one row alone has more."""
    words = f'model = "{tiny_writer(family)}"\ndata = "{completion_tasks}"\ndtype = "float32"\nquiet = true\n'
    (tmp_path / "osrm.toml").write_text(words)
    assert osrm("collect", "--samples", 10, cwd=tmp_path).code == 0
    assert osrm("init", "--each", "--objective", "kaiming", cwd=tmp_path).code == 0
    passes: list[tuple[int, int]] = []
    compute_logits = completion_trainer.completion_logits

    def see(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append((len(batch["labels"]), max(values.shape[1] for values in batch.values())))
        return compute_logits(model, batch)

    monkeypatch.setattr(completion_trainer, "completion_logits", see)

    def train(out: str) -> tuple[dict[str, torch.Tensor], list[float]]:
        passes.clear()
        run = osrm("train", "starts/same", "--epochs", 3, "--limit", 16, "--batch-size", 16 // accumulation,
                   "--gradient-accumulation", accumulation, "--dropout", 0, "--lr", 0.01, "--out", out,
                   *(["--interference-penalty", penalty] if penalty else []), cwd=tmp_path)  # fmt: skip
        assert run.code == 0, run.stderr
        losses = json.loads((tmp_path / out / "same/training.json").read_text())["losses"]
        return load_file(tmp_path / out / "same/adapter_model.safetensors"), [loss for _, loss in losses]

    whole, losses = train("whole")
    assert len(passes) == 3 * accumulation
    monkeypatch.setattr(completion_trainer, "MAX_TRAINING_TOKENS", 20)
    parts, losses_of_parts = train("parts")
    assert len(passes) > 6 * accumulation
    assert all(count == 1 or count * longest <= 20 for count, longest in passes)
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=0, atol=1e-5)
