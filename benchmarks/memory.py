"""Peak memory of whole processes above that of an interpreter which has imported the same libraries."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script
from osrm_cli.tasks import loading

RANK = 16
FLAT = 1.1  # four times the work within a tenth of the memory counts as flat
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # glibc then keeps no freed block of a MiB or more for itself


def measure(setting: Setting) -> Iterator[Row]:
    yield from collect(setting)
    yield from merge(setting)


def collect(setting: Setting) -> Iterator[Row]:
    """MiniLM on long texts: the model, one batch, one set of statistics."""
    folder, few = setting.folder, 4 if setting.quick else 256
    many, names = 4 * few, loading.list_tasks(setting.data)
    inputs.save_task(folder / "data", setting.data, "qnli" if "qnli" in names else names[0], many, 1)
    start = timing.imports("osrm_cli.models.classifier", "transformers.models.bert.modeling_bert").mebibytes

    def peak(samples: int, env: dict[str, str] | None = None) -> float:
        words = ("collect", "--data", "data", "--samples", str(samples), "--overwrite", "-q")
        return timing.osrm(*words, cwd=folder, env=env).mebibytes - start

    found = [(peak(few), peak(many)) for _ in range(setting.repeats)]
    ours = [more for _, more in found]
    loop = timing.peer("published_loop", inputs.model(), folder / "data", folder / "loop").mebibytes - start
    weights = (inputs.model() / "model.safetensors").stat().st_size / 2**20
    said = f"published loop, one example at a time, {loop:,.0f} MiB; the model's weights"
    yield Row(f"collect, {many} samples", ours, said, [weights] * len(found), unit="MiB")
    against = f"{few} samples", [less for less, _ in found], FLAT, "within", "MiB"
    yield Row(f"collect, {many} samples", ours, *against)
    against = f"{few} samples", [peak(few, RETURNED)], FLAT, "within", "MiB"
    yield Row(f"collect, {many} samples, freed memory given back at once", [peak(many, RETURNED)], *against)


def merge(setting: Setting) -> Iterator[Row]:
    """Adapters of an 8B model's shape: what is held is one layer, however many adapters there are."""
    layers, width = (1, 256) if setting.quick else (8, 4096)
    paths = inputs.save_adapters(setting.folder / "adapters", 8, layers, width, RANK)
    start = timing.imports("osrm_cli.merging.output.merged_folder", "osrm_cli.models.devices").mebibytes

    def peak(adapters: list[Path], method: str) -> float:
        words = ("merge", *adapters, "--method", method, "--out", setting.folder / "out", "--overwrite", "-q")
        return timing.osrm(*words).mebibytes - start

    for method in ("task-arith", "svd"):
        found = [(peak(paths[:2], method), peak(paths, method)) for _ in range(setting.few)]
        what = f"merge {method}, {len(paths)} adapters, {4 * layers} matrices of width {width}"
        ours = [more for _, more in found]
        yield Row(what, ours, goal=1024, kind="below", unit="MiB")
        yield Row(what, ours, "2 adapters", [less for less, _ in found], FLAT, "within", "MiB")


if __name__ == "__main__":
    script("memory", measure, __doc__)
