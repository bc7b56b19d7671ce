"""`osrm collect` on 8 tasks x 100 samples of MiniLM, whole processes, beside other ways to look at the same text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script


def measure(setting: Setting) -> Iterator[Row]:
    folder, samples = setting.folder, 4 if setting.quick else 100
    inputs.save_tasks(folder / "data", setting.data, samples, 1, 2 if setting.quick else None)
    place, data = inputs.model(), folder / "data"
    words = ("collect", "--data", "data", "--samples", str(samples), "--overwrite", "-q", "--statistic")

    def fresh(name: str) -> Path:
        timing.remove(folder / name)
        return folder / name

    def moments() -> float:
        """Our way to what EVA computes: second moments, then the leading directions."""
        first = timing.osrm(*words, "second-moment", "--out", "moments", cwd=folder)
        objective = ("--objective", "eva", "--features", "moments", "--out", "eva-starts", "--overwrite")
        return first.seconds + timing.osrm("init", "--each", *objective, "-q", cwd=folder).seconds

    runs: dict[str, Callable[[], timing.Cost | float]] = {
        "ours": lambda: timing.osrm(*words, "mean", cwd=folder),
        "bare": lambda: timing.peer("forward", place, data),
        "both": lambda: timing.osrm(*words, "mean", "--statistic", "second-moment", "--out", "both", cwd=folder),
    }
    slow: dict[str, Callable[[], timing.Cost | float]] = {
        "padded": lambda: timing.osrm(*words, "mean", "--pooling", "padded", "--out", "padded", cwd=folder),
        "loop": lambda: timing.peer("published_loop", place, data, fresh("loop")),
        "moments": moments,
        "eva": lambda: timing.peer("eva", place, data, fresh("eva")),
    }
    fast, found = timing.in_turn(runs, max(setting.few, 2)), timing.in_turn(slow, setting.few)
    error = _difference(folder / "padded", folder / "loop")
    loop, bare = "published loop", "bare forward pass"
    ours = fast["ours"][-len(found["loop"]) :]
    yield Row("means", ours, loop, found["loop"], 8, "faster", difference="see padded")
    yield Row(
        "means over padding, as the loop takes them",
        found["padded"],
        loop,
        found["loop"],
        difference=f"means differ by {error:.0e} of their size",
    )
    yield Row("means", fast["ours"], bare, fast["bare"], 1.15, "within", difference="same tokens and batches")
    yield Row("means and second moments", fast["both"], bare, fast["bare"], 1.15, "within")
    overlap = _overlap(folder / "eva-starts", folder / "eva")
    yield Row(
        "second moments, then `init --objective eva`",
        found["moments"],
        "PEFT's EVA",
        found["eva"],
        difference=f"subspaces of rank 8 overlap by {overlap:.0%}",
    )


def _difference(ours: Path, theirs: Path) -> float:
    """The largest distance between two means, in units of the mean's length."""
    found = 0.0
    for path in sorted(theirs.iterdir()):
        held, wanted = load_file(ours / path.name), load_file(path)
        for name, mean in held.items():
            expected = wanted[name.removesuffix(".mean")]
            found = max(found, float((mean - expected).norm() / expected.norm()))
    return found


def _overlap(starts: Path, theirs: Path) -> float:
    """How much of PEFT's directions lies in ours: the mean over layers and tasks of ``||A_1 A_2^T||^2 / r``."""
    shares = []
    for path in sorted(theirs.iterdir()):
        held = load_file(starts / path.stem / "adapter_model.safetensors")
        for name, rows in load_file(path).items():
            ours = held[name.replace(".default", "")]
            first, second = (torch.linalg.qr(each.double().T).Q for each in (ours, rows))
            shares.append(float((first.T @ second).square().sum()) / len(rows))
    return sum(shares) / len(shares)


if __name__ == "__main__":
    script("collect", measure, __doc__)
