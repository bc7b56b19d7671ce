"""What the benchmarks work on: the same few examples for everyone, adapters of any shape, a small pipeline."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import timing
from osrm_cli.models.base_model import find_base_model
from osrm_cli.tasks import loading
from osrm_cli.tasks.task import TaskSplit

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def save_tasks(folder: Path, data: str, train: int, dev: int, only: int | None = None) -> list[str]:
    """Write each task's first examples, of a seeded order, as ``<task>/{train,dev}.jsonl``; return the tasks.

    Nobody then spends time on reading a large file of which little is wanted.
    """
    names = loading.list_tasks(data)[:only]
    for name in names:
        save_task(folder, data, name, train, dev)
    return names


def save_task(folder: Path, data: str, name: str, train: int, dev: int) -> None:
    """Write one task's first examples."""
    for split, count in (("train", train), ("dev", dev)):
        _save(folder / name, loading.draw_examples(loading.load_split(name, data, split), count, 0))


def _save(folder: Path, data: TaskSplit) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    task = data.task
    rows = [{**dict(zip(task.columns, each.texts, strict=True)), "label": each.label} for each in data.examples]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{data.split}.jsonl").write_text(text, encoding="utf-8")
    labels = "float" if task.labels is None else list(task.labels)
    facts = {"columns": list(task.columns), "labels": labels, "metrics": list(task.metrics)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
    (folder / "task.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def model() -> Path:
    """The folder of the default base model."""
    return find_base_model("minilm")


def pipeline(folder: Path, data: str, train: int, dev: int, only: int | None = None) -> list[str]:
    """Features, starts of plain LoRA, and adapters with heads of every task; return the tasks.

    The adapters are hardly trained: what is measured with them does not depend on their quality.
    """
    names = save_tasks(folder / "data", data, train, dev, only)
    starts = [f"starts/{name}" for name in names]
    timing.osrm("collect", "--data", "data", "--samples", "10", "-q", cwd=folder)
    timing.osrm("init", "--each", "--objective", "kaiming", "-q", cwd=folder)
    timing.osrm("train", *starts, "--epochs", "1", "--limit", "32", "--dev-limit", "32", "-q", cwd=folder)
    return names


def save_adapters(folder: Path, tasks: int, layers: int, width: int, rank: int) -> list[Path]:
    """Random adapters as PEFT folders, bfloat16, of a Llama's attention."""
    return save_shaped(folder, tasks, layers, {f"self_attn.{name}": (width, width) for name in PROJECTIONS}, rank)


def save_shaped(
    folder: Path, tasks: int, layers: int, shapes: Mapping[str, tuple[int, int]], rank: int, shared: int = 0
) -> list[Path]:
    """Random adapters as PEFT folders, bfloat16, of a Llama's matrices of these ``(d_out, d_in)``.

    So many of the ranks as ``shared`` says are the same in all of them.
    """
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.rpartition(".")[2] for name in shapes],
        "base_model_name_or_path": "synthetic",
    }
    paths = []
    for task in range(tasks):
        path = folder / f"task{task}"
        path.mkdir(parents=True)
        draw, alike = torch.Generator().manual_seed(task), torch.Generator().manual_seed(tasks)
        tensors = {}
        for layer in range(layers):
            for matrix, (d_out, d_in) in shapes.items():
                name = f"base_model.model.model.layers.{layer}.{matrix}"
                a = torch.randn(rank, d_in, generator=draw) * d_in**-0.5
                b = torch.randn(d_out, rank, generator=draw) * 0.01
                if shared:
                    a[:shared] = torch.randn(shared, d_in, generator=alike) * d_in**-0.5
                    b[:, :shared] = torch.randn(d_out, shared, generator=alike) * 0.01
                tensors[f"{name}.lora_A.weight"] = a.bfloat16()
                tensors[f"{name}.lora_B.weight"] = b.bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        paths.append(path)
    return paths


def flush() -> None:
    """Let the disk finish what was written before, so that the next measurement does not wait for it."""
    subprocess.run(["sync"], check=False)
