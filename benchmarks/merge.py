"""Merge adapters of an 8B model's shape: our command beside PEFT, dense linear algebra, and the bytes alone.

    python -m benchmarks.merge                # 8 adapters, rank 16, q k v o, 32 layers, width 4096, bfloat16
    python -m benchmarks.merge --layers 4     # smaller

The peers run on a few matrices in this process and are scaled to all of them; the table says so.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import timing

METHODS = ("task-arith", "svd", "knots-ties", "tsv", "iso-c")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def make_adapters(folder: Path, tasks: int, layers: int, width: int, rank: int) -> list[Path]:
    """Random adapters as PEFT folders."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(PROJECTIONS),
        "base_model_name_or_path": "synthetic-8b",
    }
    paths = []
    for task in range(tasks):
        path = folder / f"task{task}"
        path.mkdir()
        draw = torch.Generator().manual_seed(task)
        tensors = {}
        for layer in range(layers):
            for projection in PROJECTIONS:
                name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
                a = torch.randn(rank, width, generator=draw) * width**-0.5
                b = torch.randn(width, rank, generator=draw) * 0.01
                tensors[f"{name}.lora_A.weight"] = a.bfloat16()
                tensors[f"{name}.lora_B.weight"] = b.bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(config))
        paths.append(path)
    return paths


def updates(tasks: int, width: int, rank: int) -> list[torch.Tensor]:
    """Dense updates of one matrix."""
    draw = torch.Generator().manual_seed(0)
    pairs = ((torch.randn(width, rank, generator=draw), torch.randn(rank, width, generator=draw)) for _ in range(tasks))
    return [0.02 * width**-0.5 * b @ a for b, a in pairs]


def dense_knots(dense: list[torch.Tensor]) -> torch.Tensor:
    """KnOTS as its paper has it: thin SVD of the concatenated updates, then TIES on the parts of V."""
    width = dense[0].shape[1]
    u, s, vh = torch.linalg.svd(torch.cat(dense, 1), full_matrices=False)
    parts = torch.stack([s[:, None] * vh[:, i * width : (i + 1) * width] for i in range(len(dense))])
    for part in parts:
        part[part.abs() < part.abs().flatten().kthvalue(int(0.8 * part.numel())).values] = 0
    sign = parts.sum(0).sign()
    agree = (parts.sign() == sign) & (parts != 0)
    return u @ ((parts * agree).sum(0) / agree.sum(0).clamp(min=1))


def dense_tsv(dense: list[torch.Tensor]) -> torch.Tensor:
    """TSV-M with a full SVD per task and one of each stack."""
    keep = dense[0].shape[0] // len(dense)
    svds = [torch.linalg.svd(update, full_matrices=False) for update in dense]
    u = torch.cat([x[0][:, :keep] for x in svds], 1)
    v = torch.cat([x[2][:keep] for x in svds])
    p, _, q = torch.linalg.svd(u, full_matrices=False)
    y, _, z = torch.linalg.svd(v, full_matrices=False)
    return p @ q @ torch.diag(torch.cat([x[1][:keep] for x in svds])) @ y @ z


def dense_iso(dense: list[torch.Tensor]) -> torch.Tensor:
    """Iso-C with one full SVD of the sum."""
    u, s, vh = torch.linalg.svd(torch.stack(dense).sum(0), full_matrices=False)
    return s.mean() * u @ vh


DENSE: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "knots-ties": dense_knots,
    "tsv": dense_tsv,
    "iso-c": dense_iso,
}


def time_peft(kind: str, tasks: int, width: int, rank: int) -> float:
    """Seconds of PEFT's ``add_weighted_adapter`` for one matrix, float32."""
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential()
    model.add_module("q_proj", torch.nn.Linear(width, width, bias=False))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config, adapter_name="task0")
    names = [f"task{i}" for i in range(tasks)]
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    start = time.perf_counter()
    wrapped.add_weighted_adapter(
        names, [1.0] * tasks, "merged", combination_type=kind, svd_rank=rank if kind == "svd" else None
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-dense", action="store_true", help="leave out the slow dense peers")
    args = parser.parse_args()
    matrices = args.layers * len(PROJECTIONS)

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_adapters(folder, args.tasks, args.layers, args.width, args.rank)
        start_up = timing.median(
            [
                timing.process([sys.executable, "-c", "import osrm_cli.artifacts.merged, osrm_cli.language.devices"])
                for _ in range(3)
            ]
        )
        inputs = [path / "adapter_model.safetensors" for path in paths]
        for method in METHODS:
            words = ["merge", *map(str, paths), "--method", method, "--out", str(folder / "out"), "--overwrite", "-q"]
            words += ["--rank", str(args.rank)] if method == "svd" else []
            costs, bounds = [], []
            for _ in range(args.repeats):
                costs.append(timing.osrm(*words))
                written = (folder / "out" / "adapter_model.safetensors").stat().st_size
                bounds.append(timing.bytes_alone(inputs, written, folder / "scratch"))
            cost, bound = timing.median(costs), sorted(bounds)[len(bounds) // 2]
            rows[method] = {
                "seconds": cost.seconds,
                "above_start_up": cost.seconds - start_up.seconds,
                "bytes_alone": bound,
                "peak_mib": cost.mebibytes,
                "peak_above_start_up_mib": cost.mebibytes - start_up.mebibytes,
            }
    for kind, method in (("cat", "task-arith"), ("svd", "svd")):
        seconds = sorted(time_peft(kind, args.tasks, args.width, args.rank) for _ in range(args.repeats))
        rows[method]["peer"], rows[method]["peer_seconds"] = f"PEFT {kind}", matrices * seconds[len(seconds) // 2]
    if not args.no_dense:
        dense = updates(args.tasks, args.width, args.rank)
        for method, compute in DENSE.items():
            start = time.perf_counter()
            compute(dense)
            rows[method]["peer"] = f"dense {method}"
            rows[method]["peer_seconds"] = matrices * (time.perf_counter() - start)
    facts = {"shape": vars(args), "machine": timing.machine(), "start_up_seconds": start_up.seconds, "rows": rows}
    timing.save("merge", facts, _table(rows, args, start_up.seconds))


def _table(rows: dict[str, dict[str, Any]], args: argparse.Namespace, start_up: float) -> str:
    shape = f"{args.tasks} adapters, rank {args.rank}, {args.layers} layers x q k v o, width {args.width}, bfloat16"
    lines = [
        f"{shape}; medians of {args.repeats} whole processes, of which {start_up:.1f} s is start-up.",
        f"Peers: in memory, one matrix, times {args.layers * len(PROJECTIONS)}.",
        "",
        "| method | whole process | above start-up | bytes alone | ratio | peak above start-up | peer | peer / ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        ratio = row["above_start_up"] / row["bytes_alone"]
        peer = f"{row['peer']} {row['peer_seconds']:.1f} s" if "peer" in row else "-"
        faster = f"{row['peer_seconds'] / row['above_start_up']:.1f}" if "peer" in row else "-"
        lines.append(
            f"| `{name}` | {row['seconds']:.1f} s | {row['above_start_up']:.1f} s | {row['bytes_alone']:.2f} s "
            f"| {ratio:.1f} | {row['peak_above_start_up_mib']:.0f} MiB | {peer} | {faster} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
