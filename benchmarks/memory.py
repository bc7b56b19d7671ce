"""Peak memory of whole processes above that of an interpreter which has imported the same libraries."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script

RANK = 16
FLAT = 1.1  # eight times the work within a tenth of the memory counts as flat


def measure(setting: Setting) -> Iterator[Row]:
    yield from collect(setting)
    yield from merge(setting)


def collect(setting: Setting) -> Iterator[Row]:
    """MiniLM: the model, one batch, one set of statistics."""
    folder, few = setting.folder, 4 if setting.quick else 128
    inputs.save_tasks(folder / "data", setting.data, 8 * few, 1, 1)
    model = inputs.model() / "model.safetensors"
    start = timing.imports("osrm_cli.language.base_model", "transformers.models.bert.modeling_bert").mebibytes

    def peak(samples: int) -> float:
        words = ("collect", "--data", "data", "--samples", str(samples), "--overwrite", "-q")
        return timing.osrm(*words, cwd=folder).mebibytes - start

    found = [(peak(few), peak(8 * few)) for _ in range(setting.repeats)]
    loop = timing.peer("published_loop", inputs.model(), folder / "data", folder / "loop").mebibytes - start
    size = model.stat().st_size / 2**20
    yield Row(
        f"collect, {8 * few} samples",
        [more for _, more in found],
        f"published loop, one example at a time, {loop:,.0f} MiB; the model's weights",
        [size] * len(found),
        unit="MiB",
    )
    yield Row(
        f"collect, {8 * few} samples",
        [more for _, more in found],
        f"{few} samples",
        [less for less, _ in found],
        FLAT,
        "within",
        "MiB",
    )


def merge(setting: Setting) -> Iterator[Row]:
    """Adapters of an 8B model's shape: what is held is one layer, however many adapters there are."""
    layers, width = (1, 256) if setting.quick else (8, 4096)
    paths = inputs.save_adapters(setting.folder / "adapters", 8, layers, width, RANK)
    start = timing.imports("osrm_cli.artifacts.merged", "osrm_cli.language.devices").mebibytes

    def peak(adapters: list[Path], method: str) -> float:
        words = ("merge", *adapters, "--method", method, "--out", setting.folder / "out", "--overwrite", "-q")
        return timing.osrm(*words).mebibytes - start

    for method in ("task-arith", "svd"):
        found = [(peak(paths[:2], method), peak(paths, method)) for _ in range(setting.few)]
        what = f"merge {method}, {len(paths)} adapters, {4 * layers} matrices of width {width}"
        ours = [more for _, more in found]
        yield Row(what, ours, goal=1024, kind="below", unit="MiB")
        yield Row(what, ours, "2 adapters", [less for less, _ in found], unit="MiB")


if __name__ == "__main__":
    script("memory", measure, __doc__)
