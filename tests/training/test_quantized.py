"""Training on a base model in 4 bits; needs bitsandbytes, whose CPU backend is enough."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.devices import quantization_settings
from osrm_cli.models.target_modules import layer_widths
from osrm_cli.models.text.language_model import load_language_model
from tests.conftest import LONG, save_tokenizer
from tests.run_cli import Run, osrm

CPU = torch.device("cpu")
HAS_LIBRARY = importlib.util.find_spec("bitsandbytes") is not None
needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="the extra 'quantized' is not installed")


@pytest.fixture
def starts(completion_tasks: Path, tmp_path: Path) -> Path:
    """A project on a small Llama whose widths are multiples of 32, as bitsandbytes' kernels for CPUs need them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    (tmp_path / "base").mkdir()
    widths = {
        **LONG,
        "hidden_size": 64,
        "intermediate_size": 64,
        "vocab_size": save_tokenizer(tmp_path / "base", "llama"),
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, **widths)).save_pretrained(
        tmp_path / "base"
    )
    (tmp_path / "osrm.toml").write_text(f'model = "base"\ndata = "{completion_tasks}"\nquiet = true\n')
    assert osrm("collect", "--samples", 10, cwd=tmp_path).code == 0
    assert osrm("init", "--each", "--rank", 4, cwd=tmp_path).code == 0
    return tmp_path


def train(folder: Path, *words: object) -> Run:
    settings = ("--epochs", 3, "--lr", 0.01, "--overwrite", "--interference-penalty", 0.1)
    return osrm("train", "starts/same", *settings, *words, cwd=folder)


@needs_library
def test_training_on_four_bits_is_nearly_that_on_the_model_itself(starts: Path) -> None:
    logs = {}
    for name, words in (("whole", ()), ("quantized", ("--quantize", "4bit"))):
        run = train(starts, *words, "--out", name)
        assert run.code == 0, run.stderr
        logs[name] = json.loads((starts / name / "same" / "training.json").read_text())
    losses = {name: [loss for _, loss in log["losses"]] for name, log in logs.items()}
    assert losses["quantized"][-1] < losses["quantized"][0]
    assert losses["quantized"] != losses["whole"]
    assert losses["quantized"] == pytest.approx(losses["whole"], rel=0.05)
    record = json.loads((starts / "quantized" / "same" / "osrm.json").read_text())
    assert record["settings"]["quantize"] == "4bit"
    assert "quantize" not in json.loads((starts / "whole" / "same" / "osrm.json").read_text())["settings"]
    tensors = load_file(starts / "quantized" / "same" / "adapter_model.safetensors")
    assert all("lora_" in name and tensor.dtype == torch.float32 for name, tensor in tensors.items())
    assert osrm("eval", "quantized/same", "--no-generate", cwd=starts).code == 0


@needs_library
def test_widths_of_a_quantized_layer_are_those_of_the_layer(tiny_writer: Callable[[str], Path]) -> None:
    folder = tiny_writer("llama")
    settings = quantization_settings(CPU, torch.float32)
    model = load_language_model(folder, load_tokenizer(folder), torch.float32, settings=settings).model
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.get_parameter("weight").dtype == torch.uint8
    assert layer_widths(layer) == (16, 32)
    assert model.get_submodule("lm_head").get_parameter("weight").dtype == torch.float32


@pytest.mark.skipif(HAS_LIBRARY, reason="bitsandbytes is installed")
def test_without_the_library_the_extra_is_named(starts: Path) -> None:
    run = train(starts, "--quantize", "4bit")
    assert run.error == "a base model in 4 bits needs bitsandbytes"
    assert "hint: pip install 'osrm-cli[quantized]'" in run.stderr
    assert not (starts / "adapters").exists()


def test_what_cannot_be_quantized(starts: Path, text_tasks: Path) -> None:
    run = train(starts, "--quantize", "4bit", "--full")
    assert "--full trains whole weights" in run.error
    words = ("--task", "mood", "--task", "pair", "--data", text_tasks, "--out", "of-classes", "--samples", 10)
    assert osrm("collect", *words, cwd=starts).code == 0
    assert osrm("init", "--each", "--features", "of-classes", "--out", "classes", cwd=starts).code == 0
    run = osrm("train", "classes/mood", "--data", text_tasks, "--quantize", "4bit", cwd=starts)
    assert "--quantize is for tasks that are answered with text" in run.error
