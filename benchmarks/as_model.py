"""`osrm merge --as model` at the shapes of an 8B and a 70B model, a few layers each, beside copying the base.

4 adapters of rank 16 for all seven projections, bfloat16, files of one layer each. Whole processes, less the time to
start; copying reads, writes and syncs as many bytes. In each round both run in turn.
"""

from collections.abc import Iterator

from benchmarks import inputs, timing
from benchmarks.offload import SHAPE, SMALL, save_decoder
from benchmarks.report import Row, Setting, script

LARGE = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
MODELS = {"8B": (SHAPE, 4), "70B": ({**SHAPE, **LARGE}, 2)}  # and so many layers, whose files are as large as a shard
# Times that copying the base may take; none where the rule computes for longer than the disk writes.
METHODS = {"task-arith": 2, "ties": None}


def measure(setting: Setting) -> Iterator[Row]:
    for name, (shape, layers) in MODELS.items():
        yield from _of_model(setting, name, SMALL if setting.quick else shape, 1 if setting.quick else layers)


def _of_model(setting: Setting, name: str, shape: dict[str, int], layers: int) -> Iterator[Row]:
    folder = setting.folder / name
    folder.mkdir()
    base, out = folder / "base", folder / "out"
    save_decoder(base, shape, layers)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    shapes = {f"self_attn.{each}": (keys if each[0] in "kv" else width, width) for each in inputs.PROJECTIONS}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    adapters = inputs.save_shaped(folder / "adapters", 4, layers, shapes, 16)
    files = sorted(base.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    inputs.flush()
    for method, goal in METHODS.items():
        words = (*adapters, "--method", method, "--as", "model", "--model", base, "--out", out, "--overwrite", "-q")
        ours, copies, peaks = [], [], []
        for _ in range(setting.few if goal is None else setting.repeats):
            start = timing.imports("osrm_cli.merging.output.merged_folder", "osrm_cli.models.devices")
            cost = timing.osrm("merge", *words)
            timing.remove(out)
            inputs.flush()
            copies.append(timing.bytes_alone(files, size, folder / "copy"))
            ours.append(cost.seconds - start.seconds)
            peaks.append(cost.mebibytes)
        what = f"`{method} --as model`, {layers} layers of {name} and embeddings, {size / 1e9:.1f} GB"
        yield Row(what, ours, "copy the base", copies, goal, "within")
        yield Row(f"{what}: peak memory", peaks, goal=1024, kind="below", unit="MiB")
    timing.remove(folder)


if __name__ == "__main__":
    script("as_model", measure, __doc__)
