"""mergekit as a peer, where it is installed: it depends on other versions than we do, so it is never required.

python3 -m venv mk && mk/bin/pip install -c constraints.txt mergekit && PATH=$PATH:$PWD/mk/bin python -m benchmarks.ties
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks import inputs, timing

MISSING = "mergekit: not installed (pip install mergekit in an environment of its own, its bin in PATH)"


def program() -> Path | None:
    """``mergekit-yaml``, if it can be found."""
    place = shutil.which("mergekit-yaml")
    return Path(place) if place else None


def python() -> Path | None:
    """The Python that has it, beside its program."""
    place = program()
    return place.resolve().with_name("python") if place else None


def save_models(
    folder: Path, adapters: list[Path], layers: int, width: int, inner: int | None = None, kv_heads: int | None = None
) -> Path:
    """A base model of Llama's shape, and beside it the model that each adapter makes; return the base's folder.

    Args:
        folder: Where all go.
        adapters: PEFT folders.
        layers: Number of layers.
        width: Of the model.
        inner: Width of the MLP; by default 11 / 4 of the model's.
        kv_heads: Heads of keys and values; by default as many as of queries.
    """
    inner, keys, words = inner or width * 11 // 4, 64 * (kv_heads or width // 64), 512
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": keys // 64,
        "vocab_size": words,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens": (words, width), "lm_head": (words, width), "model.norm": (width,)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.self_attn.{name}": (keys if name[0] in "kv" else width, width) for name in inputs.PROJECTIONS
        }
        shapes |= {f"{block}.mlp.{name}": (inner, width) for name in ("gate_proj", "up_proj")}
        shapes |= {f"{block}.mlp.down_proj": (width, inner)}
        shapes |= {f"{block}.{name}": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    base = {f"{name}.weight": torch.randn(shape, generator=draw) * 0.02 for name, shape in shapes.items()}
    _save(folder / "base", config, base)
    for adapter in adapters:
        factors = load_file(adapter / "adapter_model.safetensors")
        changed = dict(base)
        for name in base:
            a, b = (factors.get(f"base_model.model.{name[:-7]}.lora_{x}.weight") for x in "AB")
            if a is not None and b is not None:
                changed[name] = base[name] + 2 * b.float() @ a.float()
        _save(folder / adapter.name, config, changed)
    return folder / "base"


def _save(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merge(
    method: str,
    models: Path,
    tasks: list[str],
    parameters: dict[str, float],
    out: Path,
    base: str | None = "base",
) -> timing.Cost:
    """Run ``mergekit-yaml`` on full models; a whole process.

    Args:
        method: mergekit's name.
        models: Folder of ``save_models``.
        tasks: Names of the models that are merged.
        parameters: For all of them, beside a weight of 1.
        out: Where the result goes.
        base: Name of the base model, for methods that have one.
    """
    recipe = {
        "merge_method": method,
        "models": [{"model": str(models / task)} for task in tasks if task != base],
        "parameters": {"weight": 1.0, **parameters},
        "dtype": "float32",
    }
    if base:
        recipe["base_model"] = str(models / base)
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    timing.remove(out)
    found = program()
    if found is None:
        raise FileNotFoundError(MISSING)
    return timing.process([found, path, out, "--no-copy-tokenizer"])


def difference(ours: Path, theirs: Path) -> str:
    """How far two merged models are apart: the largest difference, and the share of entries beyond rounding."""
    found, wanted = _load(ours), _load(theirs)
    worst, apart, total = 0.0, 0, 0
    for name, tensor in wanted.items():
        gaps = (found[name] - tensor).abs()
        worst, apart, total = max(worst, float(gaps.max())), apart + int((gaps > 1e-6).sum()), total + gaps.numel()
    return f"largest difference {worst:.0e}, {apart / total:.0e} of entries by more than 1e-6"


def _load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}
