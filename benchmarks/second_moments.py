"""Second moments of all projections of an 8B model's layers, widths 4096 and 14336, in one pass and within a bound.

A random decoder of 2 layers of Llama 3 8B's shape, `--offload`: each layer has three inputs of width 4096 and one of
14336, and 1 GB in the file. Memory is the process's own, less that of collecting means alone; seconds are of processor
time. One run each.
"""

from collections.abc import Iterator

from benchmarks.offload import SHAPE, SMALL, collect, compare_files, save_decoder, save_rows
from benchmarks.report import Row, Setting, script

BOUND = 3  # GiB; both layers take 3.9
TARGETS = ("--offload", "--target-modules", "all-linear")


def measure(setting: Setting) -> Iterator[Row]:
    folder = setting.folder
    shape, depth, samples = (SMALL, 2, 8) if setting.quick else (SHAPE, 2, 8)
    save_rows(folder / "data" / "words", samples)
    save_decoder(folder / "base", shape, depth)
    means = collect(folder, samples, "means", *TARGETS)
    words = (*TARGETS, "--statistic", "second-moment", "--memory")
    whole, bounded = (collect(folder, samples, name, *words, name) for name in ("1TiB", f"{BOUND}GiB"))
    same = compare_files(folder / "1TiB", folder / f"{BOUND}GiB")
    ours, theirs = (each.mebibytes - means.mebibytes for each in (bounded, whole))
    what = f"--memory {BOUND}GiB, {depth} layers"
    yield Row(what, [ours], goal=BOUND * 1024, kind="below", unit="MiB", difference=same)
    yield Row(what, [ours], "--memory 1TiB, one pass", [theirs], unit="MiB")
    yield Row(what, [bounded.seconds], "--memory 1TiB, one pass", [whole.seconds])
    yield Row(what, [bounded.seconds], "means alone", [means.seconds])


if __name__ == "__main__":
    script("second_moments", measure, __doc__)
