"""A whole merge at the size of a 70B model: 80 layers, all seven projections, 4 adapters of rank 16, bfloat16.

One run, a whole process. It takes half an hour or more, and 3 GB of disk.
"""

from collections.abc import Iterator

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script

TASKS, RANK, KEPT = 4, 16, 32


def measure(setting: Setting) -> Iterator[Row]:
    width, inner, keys, layers = (64, 96, 16, 2) if setting.quick else (8192, 28672, 1024, 80)
    shapes = {f"self_attn.{name}": (keys if name[0] in "kv" else width, width) for name in inputs.PROJECTIONS}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    paths = inputs.save_shaped(setting.folder / "adapters", TASKS, layers, shapes, RANK)
    inputs.flush()
    cost = timing.osrm("merge", *paths, "--method", "ties", "--rank", str(KEPT), "--out", setting.folder / "out", "-q")
    what = f"`ties --rank {KEPT}`, {layers} layers of width {width:,} and {inner:,}"
    yield Row(what, [cost.seconds], goal=1800, kind="below")
    yield Row(f"{what}: peak memory", [cost.mebibytes], goal=1024, kind="below", unit="MiB")


if __name__ == "__main__":
    script("whole", measure, __doc__)
