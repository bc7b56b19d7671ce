"""Features of a model whose weights stay on disk are those of a model in memory, and no more than a layer is held."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from osrm_cli.errors import OsrmError
from osrm_cli.features.collect import collect_features
from osrm_cli.models import offload
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.offload import OffloadedModel, group_offloaded_batches, offload_settings
from osrm_cli.models.text.language_model import load_language_model

CPU = torch.device("cpu")
STATISTICS = ["mean", "second-moment", "sketch:4", "samples"]
Tiny = Callable[[str], Path]


def collect(folder: Path, tasks: Path, out: Path, **settings: Any) -> dict[str, bytes]:
    """The files of two tasks, byte by byte."""
    names = sorted(path.name for path in tasks.iterdir())[:2]
    chosen = {"samples": 20, "max_length": 32, "batch_size": 3, "statistics": STATISTICS, **settings}
    done = collect_features(names, tasks, model=str(folder), out=out, **chosen)
    return {name: path.read_bytes() for name, path in done.paths.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mistral", "gemma2", "t5"])
def test_a_writer_s_features_are_the_same_bytes(
    family: str, tiny_writer: Tiny, completion_tasks: Path, tmp_path: Path
) -> None:
    targets = {"target_modules": ["q", "k", "v", "wi"] if family == "t5" else ["all-linear"]}
    whole = collect(tiny_writer(family), completion_tasks, tmp_path / "whole", **targets)
    assert collect(tiny_writer(family), completion_tasks, tmp_path / "offloaded", offload=True, **targets) == whole


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "deberta-v2", "llama"])
def test_a_classifier_s_features_are_the_same_bytes(
    family: str, tiny_model: Tiny, text_tasks: Path, tmp_path: Path
) -> None:
    whole = collect(tiny_model(family), text_tasks, tmp_path / "whole")
    assert collect(tiny_model(family), text_tasks, tmp_path / "offloaded", offload=True) == whole


def test_several_groups_give_the_same_bytes(
    tiny_writer: Tiny, completion_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(tiny_writer("llama"), completion_tasks, tmp_path / "whole")
    monkeypatch.setattr(offload, "_GROUP_TOKENS", 40)
    assert collect(tiny_writer("llama"), completion_tasks, tmp_path / "offloaded", offload=True) == whole


def test_groups_are_bounded_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_GROUP_TOKENS", 10)
    assert group_offloaded_batches([[0], [1], [2], [3]], [20, 6, 4, 1]) == [[[0]], [[1], [2]], [[3]]]


def open_offloaded(folder: Path) -> tuple[Any, OffloadedModel]:
    loaded = load_language_model(folder, load_tokenizer(folder), torch.float32, settings=offload_settings())
    return loaded.model, OffloadedModel(loaded, CPU, folder)


def test_a_layer_is_read_once_for_all_passes_and_let_go_of(tiny_writer: Tiny) -> None:
    model, offloaded = open_offloaded(tiny_writer("llama"))
    assert all(parameter.is_meta for parameter in model.parameters())
    events: list[str] = []
    read = offloaded._read_weights

    def note(name: str, empty: torch.Tensor) -> torch.Tensor:
        events.append(name)
        return read(name, empty)

    offloaded._read_weights = note  # type: ignore[method-assign]
    held: list[set[str]] = []

    def look(*_: Any) -> None:
        held.append({name for name, parameter in model.named_parameters() if not parameter.is_meta})

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(look)
    outputs: list[torch.Tensor] = []
    batches = [torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 10, 11]])]
    offloaded.run([lambda ids=ids: outputs.append(model(ids).logits) for ids in batches])  # type: ignore[misc]
    assert len(events) == len(set(events)) == len(dict(model.named_parameters()))
    assert len(held) == 4  # two layers, two passes
    assert all(len({name.split(".")[2] for name in names}) == 1 for names in held)
    assert all(parameter.is_meta for parameter in model.parameters())
    whole: Any = load_language_model(tiny_writer("llama"), load_tokenizer(tiny_writer("llama")), torch.float32).model
    for ids, output in zip(batches, outputs, strict=True):
        torch.testing.assert_close(output, whole(ids).logits, atol=1e-6, rtol=1e-6)


def test_a_failing_pass_ends_the_others(tiny_writer: Tiny) -> None:
    model, offloaded = open_offloaded(tiny_writer("llama"))
    ended: list[str] = []

    def fail() -> None:
        model(torch.tensor([[5]]))
        raise ZeroDivisionError

    def wait() -> None:
        try:
            with torch.inference_mode():
                model(torch.tensor([[5]]))
                model(torch.tensor([[6]]))
        finally:
            ended.append("wait")

    with pytest.raises(ZeroDivisionError):
        offloaded.run([wait, fail])
    assert ended == ["wait"]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_weight_that_the_checkpoint_lacks(tiny_model: Tiny, text_tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in tiny_model("bert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in weights.items() if "layer.1.attention.self.query" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(OsrmError, match=r"query.weight is missing or of another shape") as caught:
        collect(folder, text_tasks, tmp_path / "features", offload=True)
    assert "without --offload" in (caught.value.hint or "")
    assert not (tmp_path / "features").exists()


def test_a_gradient_needs_the_model_in_memory(tiny_writer: Tiny, completion_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match="whole model in memory"):
        collect_features(
            data=completion_tasks, model=str(tiny_writer("llama")), statistics=["gradient"], offload=True, out=tmp_path
        )
