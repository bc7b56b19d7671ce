"""`osrm collect --offload` on random decoders of few layers, each of Llama 3 8B's or Mistral 7B's shape, in float32.

A layer has 218 million weights (832 MiB in float32), embedding and output layer have 134 million each, as Mistral's.
One run each. Peaks are of the process's own memory: pages of files that the kernel can drop do not count. Seconds are
of processor time.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import timing
from benchmarks.report import Row, Setting, script
from benchmarks.timing import Cost

BATCH_SIZE = 4
WORDS = [f"w{index}" for index in range(60)]
SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 32768,
}  # fmt: skip
SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512
}  # fmt: skip


def measure(setting: Setting) -> Iterator[Row]:
    folder = setting.folder
    shape, depths, samples = (SMALL, (1, 2), 8) if setting.quick else (SHAPE, (1, 3), 12)
    save_rows(folder / "data" / "words", samples)
    found: dict[tuple[str, int], Cost] = {}  # by way and layers
    for depth in depths:
        save_decoder(folder / "base", shape, depth)
        found["in memory", depth] = collect(folder, samples, "whole")
        found["--offload", depth] = collect(folder, samples, "offloaded", "--offload")
        same = compare_files(folder / "whole", folder / "offloaded")
        moments = collect(folder, samples, "moments", "--offload", "--statistic", "second-moment")
        found["--offload, second moments too", depth] = moments
        whole = "in memory", found["in memory", depth]
        yield from _rows(f"means, {depth} layers", found["--offload", depth], *whole, same)
        yield from _rows(f"means and second moments, {depth} layers", moments)
    few, many = depths
    peer = run_watched(
        ["-m", "benchmarks.peers.disk_offload", "base", "data/words/train.jsonl", str(BATCH_SIZE)], folder
    )
    batches = f"accelerate's disk offload, {-(-samples // BATCH_SIZE)} batches"
    yield from _rows(f"means, {many} layers", found["--offload", many], batches, peer)
    ways = dict.fromkeys(way for way, _ in found)
    memory, means, moments = (_growth(found[way, few], found[way, many], many - few) for way in ways)
    yield from _rows("each further layer, means", means, "in memory", memory)
    yield from _rows("each further layer, means and second moments", moments)


def collect(folder: Path, samples: int, out: str, *more: str) -> Cost:
    words = ["collect", "--data", "data", "--model", "base", "--samples", samples, "--batch-size", BATCH_SIZE]
    words += ["--statistic", "mean", "--overwrite", "-q", "--out", out, *more]
    return run_watched(["-m", "osrm_cli", *map(str, words)], folder)


def _rows(what: str, ours: Cost, peer: str = "", theirs: Cost | None = None, same: str = "") -> Iterator[Row]:
    """Memory and time of one thing."""
    yield Row(what, [ours.mebibytes], peer, [theirs.mebibytes] if theirs else [], unit="MiB", difference=same)
    yield Row(what, [ours.seconds], peer, [theirs.seconds] if theirs else [])


def _growth(less: Cost, more: Cost, layers: int) -> Cost:
    """What one more layer costs."""
    return Cost((more.seconds - less.seconds) / layers, (more.mebibytes - less.mebibytes) / layers)


def save_rows(folder: Path, samples: int) -> None:
    """A text task of ``samples`` rows of some 40 tokens."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(samples):
        numbers = torch.randint(len(WORDS), (40,), generator=draw).tolist()
        words = [WORDS[number] for number in numbers]
        rows.append({"prompt": " ".join(words[:32]) + " ", "completion": " ".join(words[32:])})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def save_decoder(folder: Path, shape: dict[str, int], depth: int) -> None:
    """A random Llama in bfloat16, a file for each layer, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    timing.remove(folder)
    folder.mkdir()
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = LlamaConfig(num_hidden_layers=depth, **shape, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    draw, weight_map = torch.Generator().manual_seed(0), {}
    parts = [name.split(".")[2] if ".layers." in name else name for name in shapes]
    for part in dict.fromkeys(parts):
        names = [name for name, its_part in zip(shapes, parts, strict=True) if its_part == part]
        file = f"model-{part}.safetensors"
        save_file({name: _draw_weight(name, shapes[name], draw) for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _draw_weight(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """Ones for a norm, else 64 random rows, again and again: drawing all would take longer than the forward pass."""
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    rows = torch.empty(64, shape[1], dtype=torch.bfloat16).normal_(0, 0.02, generator=draw)
    return rows.repeat(shape[0] // 64, 1)


def run_watched(words: list[str], folder: Path) -> Cost:
    """Processor time, and the largest anonymous memory that was seen, every hundredth of a second."""
    around = {**os.environ, "PYTHONPATH": str(timing.ROOT), "HF_HUB_OFFLINE": "1"}
    before, peak = resource.getrusage(resource.RUSAGE_CHILDREN), 0
    with subprocess.Popen([sys.executable, *words], cwd=folder, env=around, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            held = next((line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")), "0")
            peak = max(peak, int(held))
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak / 1024)


def compare_files(first: Path, second: Path) -> str:
    """Whether the features of two folders are the same."""
    same = (first / "words.safetensors").read_bytes() == (second / "words.safetensors").read_bytes()
    return "the same bytes" if same else "the bytes differ"


if __name__ == "__main__":
    script("offload", measure, __doc__)
