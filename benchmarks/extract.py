"""`osrm extract --rank 32` on a random Llama of width 1024 and its fine-tuned copy, float32, beside PEFT and mergekit.

The difference of every linear layer has singular values that fall like a power. Whole processes on all sides; ours
also compares the tensors that are not linear layers. PEFT converts no full models: its conversion of a layer is called
on the differences. mergekit runs where it is installed, see ``mergekit.py``.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import timing
from benchmarks.report import Row, Setting, script
from osrm_cli.adapters.open_adapter import open_adapter

RANK = 32
MISSING = "mergekit-extract-lora: not installed (see benchmarks/mergekit.py)"


def measure(setting: Setting) -> Iterator[Row]:
    layers, width, rank = (1, 128, 8) if setting.quick else (4, 1024, RANK)
    folder = setting.folder
    save_models(folder, layers, width)
    runs = {
        "ours": lambda: timing.osrm(
            *("extract", folder / "base", folder / "tuned", "--rank", str(rank), "-q"),
            *("--out", folder / "ours", "--overwrite"),
        ),
        "peft": lambda: timing.peer("convert_to_lora", folder / "base", folder / "tuned", str(rank), folder / "peft"),
    }
    program = shutil.which("mergekit-extract-lora")
    if program:
        words = ("--model", folder / "tuned", "--base-model", folder / "base", "--out-path", folder / "mergekit")
        runs["mergekit"] = lambda: timing.process(
            [program, *words, "--max-rank", str(rank), "--exclude-regex", "embed_tokens|lm_head|norm"]
        )
    costs: dict[str, list[timing.Cost]] = {name: [] for name in runs}
    for _ in range(setting.few):
        for name, run in runs.items():
            timing.remove(folder / name)
            costs[name].append(run())
    kept = {name: kept_energy(folder, folder / name) for name in runs}
    what = f"rank {rank}, {7 * layers} matrices of a Llama of width {width}"
    for name, peer in {"peft": "PEFT's conversion", "mergekit": "mergekit-extract-lora"}.items():
        if name not in runs:
            yield Row(what, [cost.seconds for cost in costs["ours"]], MISSING)
            continue
        same = f"energy kept: {kept['ours']:.4%}, theirs {kept[name]:.4%}"
        seconds = {each: [cost.seconds for cost in costs[each]] for each in ("ours", name)}
        yield Row(what, seconds["ours"], peer, seconds[name], difference=same)
        peaks = {each: [cost.mebibytes for cost in costs[each]] for each in ("ours", name)}
        yield Row(f"{what}: peak memory", peaks["ours"], peer, peaks[name], unit="MiB")


def save_models(folder: Path, layers: int, width: int) -> None:
    """``base`` and ``tuned``, whose linear layers differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=512,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(str(folder / "base"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers." in name and weight.ndim == 2:
                weight += difference(*weight.shape)
    model.save_pretrained(str(folder / "tuned"))


def difference(d_out: int, d_in: int) -> torch.Tensor:
    """Random, its singular values about ``0.05 / sqrt(i)``."""
    size = min(d_out, d_in)
    left, right = (torch.randn(d, size) * d**-0.5 for d in (d_out, d_in))
    return 0.05 * (left * torch.arange(1, size + 1) ** -0.5) @ right.T


def kept_energy(folder: Path, extracted: Path) -> float:
    """The share of the differences' energy that an adapter holds, all layers together, from its files."""
    base, tuned = (_load(folder / name) for name in ("base", "tuned"))
    adapter, left, total = open_adapter(extracted), 0.0, 0.0
    for layer in adapter.layers:
        whole = tuned[f"{layer}.weight"].double() - base[f"{layer}.weight"].double()
        left += float((whole - adapter.delta(layer, torch.float64).dense()).square().sum())
        total += float(whole.square().sum())
    return 1 - left / total


def _load(folder: Path) -> Mapping[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


if __name__ == "__main__":
    script("extract", measure, __doc__)
