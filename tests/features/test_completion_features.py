"""Features of text tasks equal a naive loop over the same tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from osrm_cli.errors import OsrmError
from osrm_cli.features.collect import collect_features
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.text.completions import CompletionTokenizer
from osrm_cli.tasks.loading import draw_examples, load_split
from tests.run_cli import osrm


def naive_statistics(folder: Path, tasks: Path, layers: list[str], tokens: str) -> dict[str, dict[str, torch.Tensor]]:
    """Mean and second moment of each layer's inputs, one example at a time, by hooks, in float64."""
    is_t5 = "t5" in folder.name
    model = (AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM).from_pretrained(folder).eval()
    data = draw_examples(load_split("backwards", tasks, "train"), 10, 0)
    encodings = CompletionTokenizer(load_tokenizer(folder), is_t5, 64).encode(data.text_examples)[1]
    rows: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    kept: Any = None

    def hook(layer: str) -> Callable[..., None]:
        return lambda _module, args: rows[layer].append((args[0][0] if is_t5 else args[0][0][kept]).double())

    handles = [model.get_submodule(layer).register_forward_pre_hook(hook(layer)) for layer in layers]
    for encoding in encodings:
        batch = {name: torch.from_numpy(values).long()[None] for name, values in encoding.items()}
        completion = batch["labels"][0] != -100
        kept = {"all": torch.ones_like(completion), "prompt": ~completion, "completion": completion}[tokens]
        with torch.no_grad():
            model(**batch)  # T5 shifts the labels to the right for its decoder
    for handle in handles:
        handle.remove()
    seen = {layer: torch.cat(parts) for layer, parts in rows.items()}
    return {layer: {"mean": x.mean(0), "second-moment": x.T @ x / len(x)} for layer, x in seen.items()}


def collect(
    folder: Path, tasks: Path, tokens: str, targets: Sequence[str], out: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """The same statistics as ``osrm collect`` writes them, in batches of 4, of every layer with an entry."""
    collect_features(
        ["backwards"], tasks, model=str(folder), samples=10, max_length=64, tokens=tokens, batch_size=4,
        target_modules=targets, statistics=["mean", "second-moment"], dtype="float32", out=out,
    )  # fmt: skip
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(out / "backwards.safetensors").items():
        layer, _, statistic = name.rpartition(".")
        found.setdefault(layer, {})[statistic] = tensor
    return found


def check(found: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]) -> None:
    for layer, statistics in found.items():
        assert set(statistics) == {"mean", "second-moment"}
        for name, tensor in statistics.items():
            wanted = expected[layer][name]
            assert tensor.shape == wanted.shape
            assert (tensor.double() - wanted).norm() <= 1e-6 * wanted.norm(), (layer, name)


@pytest.mark.parametrize("tokens", ["all", "prompt", "completion"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_features_of_a_causal_model(
    family: str, tokens: str, tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    folder = tiny_writer(family)
    found = collect(folder, completion_tasks, tokens, ["all-linear"], tmp_path)
    assert not any("lm_head" in layer for layer in found)
    check(found, naive_statistics(folder, completion_tasks, list(found), tokens))


def test_features_of_encoder_and_decoder(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    """The encoder reads the prompt alone and the decoder the completion alone."""
    folder = tiny_writer("t5")
    found = collect(folder, completion_tasks, "all", ["q", "v", "k", "o", "wi"], tmp_path)
    assert {layer.partition(".")[0] for layer in found} == {"encoder", "decoder"}
    assert any("EncDecAttention.k" in layer for layer in found)
    check(found, naive_statistics(folder, completion_tasks, list(found), "all"))


@pytest.mark.parametrize("tokens", ["prompt", "completion"])
def test_tokens_of_one_side_are_refused_on_an_encoder_decoder(
    tokens: str, tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    folder = tiny_writer("t5")
    words = ("collect", "--task", "same", "--data", completion_tasks, "--model", folder, "--tokens", tokens, "-q")
    done = osrm(*words, cwd=tmp_path)
    assert done.code == 1
    assert done.error.startswith(f"--tokens {tokens}: {folder} is an encoder-decoder")
    assert done.error.endswith("expected --tokens all")
    assert "hint: leave it out" in done.stderr
    assert not list(tmp_path.iterdir())


def test_gradient_is_that_of_the_mean_loss(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    folder = tiny_writer("llama")
    collect_features(
        ["same"], completion_tasks, model=str(folder), samples=8, statistics=["gradient"], batch_size=3,
        dtype="float32", out=tmp_path,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    data = draw_examples(load_split("same", completion_tasks, "train"), 8, 0)
    encodings = CompletionTokenizer(load_tokenizer(folder), False, 64).encode(data.text_examples)[1]
    count = sum(int((encoding["labels"] != -100).sum()) for encoding in encodings)
    for encoding in encodings:
        batch = {name: torch.from_numpy(values).long()[None] for name, values in encoding.items()}
        (model(**batch).loss * (batch["labels"] != -100).sum() / count).backward()
    for name, gradient in load_file(tmp_path / "same.safetensors").items():
        expected = model.get_submodule(name.removesuffix(".gradient")).weight.grad
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_tasks_of_two_kinds_are_collected_apart(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, text_tasks: Path, tmp_path: Path
) -> None:
    for source in (completion_tasks / "same", text_tasks / "mood"):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / source.name).symlink_to(source)
    with pytest.raises(OsrmError, match="different models"):
        collect_features(data=tmp_path / "tasks", model=str(tiny_writer("llama")), out=tmp_path / "features")
    assert not (tmp_path / "features").exists()
