"""What `osrm init` computes: 8 tasks, rank 8, in one process; and `--each` beside one start, whole processes.

Peers run on a few layers and count for all of them.
"""

from collections.abc import Iterator

import torch

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.osrm import osrm
from osrm_cli.linalg.second_moment import SecondMoment

TASKS, RANK, LAYERS = 8, 8, 64
WIDE = 4096
SLOW = 4  # layers of the peer at width 4096


def measure(setting: Setting) -> Iterator[Row]:
    widths = (96, 700) if setting.quick else (384, 1024, WIDE)
    for width in widths:
        yield means(width, setting.repeats)
    for width in widths:
        yield moments(width, 1 if width == WIDE else setting.repeats)
    yield each(setting)


def means(width: int, repeats: int) -> Row:
    """From the other tasks' means: ours by QR, the published code by a full SVD of each layer."""
    H = torch.randn(TASKS - 1, width, generator=torch.Generator().manual_seed(0))
    problems = [
        LayerProblem(RANK, width, f"layer{i}", "task", 0, others=SecondMoment(H, factored=True)) for i in range(LAYERS)
    ]
    few = SLOW if width >= WIDE else LAYERS

    def full() -> float:
        return timing.seconds(lambda: [torch.linalg.svd(H, full_matrices=True) for _ in range(few)]) * LAYERS / few

    found = timing.in_turn({"ours": lambda: timing.seconds(lambda: [*map(osrm, problems)]), "full": full}, repeats)
    ours, theirs = osrm(problems[0]), torch.linalg.svd(H, full_matrices=True).Vh[-RANK:]
    left = [float((A.double() @ H.double().T).norm() / H.double().norm()) for A in (ours, theirs)]
    same = f"norm of A H^T by that of H: {left[0]:.0e}, theirs {left[1]:.0e}"
    goal = 100 if width == WIDE else None
    return Row(
        f"means, width {width}, {LAYERS} layers", found["ours"], "full SVD", found["full"], goal, difference=same
    )


def moments(width: int, repeats: int) -> Row:
    """From the other tasks' second moments: ours by inverse iteration, beside all eigenvectors."""
    S = second_moment(width)
    problem = LayerProblem(RANK, width, "layer", "task", 0, others=SecondMoment(S, factored=False))
    runs = {
        "ours": lambda: timing.seconds(lambda: osrm(problem)),
        "eigh": lambda: timing.seconds(lambda: torch.linalg.eigh(S)),
    }
    found = timing.in_turn(runs, repeats)
    A = osrm(problem)
    best = float(torch.linalg.eigvalsh(S)[:RANK].sum()) if width < WIDE else float(spectrum(width)[:RANK].sum())
    same = f"tr A C A^T is {float(((A @ S) * A).sum()) / best - 1:.0e} above the least"
    goal = 3 if width == WIDE else None
    peer = "torch.linalg.eigh"
    return Row(f"second moment, width {width}, 1 layer", found["ours"], peer, found["eigh"], goal, difference=same)


def spectrum(width: int) -> torch.Tensor:
    """Eigenvalues that fall as those of real features do, the smallest first, ``(d,)``."""
    return torch.arange(width, 0, -1, dtype=torch.float64) ** -1.5


def second_moment(width: int) -> torch.Tensor:
    """A second moment of this spectrum in a random basis: a few reflections of a diagonal matrix."""
    draw = torch.Generator().manual_seed(0)
    S = spectrum(width).diag()
    for _ in range(4):
        v = torch.nn.functional.normalize(torch.randn(width, generator=draw, dtype=torch.float64), dim=0)
        S -= 2 * torch.outer(v, v @ S)
        S -= 2 * torch.outer(S @ v, v)
    return (S + S.T) / 2


def each(setting: Setting) -> Row:
    """Every task's start in one pass, beside one task's."""
    folder = setting.folder
    names = inputs.save_tasks(folder / "data", setting.data, 10, 1, 2 if setting.quick else None)
    timing.osrm("collect", "--data", "data", "--statistic", "second-moment", "-q", cwd=folder)
    runs = {
        "each": lambda: timing.osrm("init", "--each", "--overwrite", "-q", cwd=folder),
        "one": lambda: timing.osrm("init", "--exclude", names[0], "--overwrite", "-q", cwd=folder),
    }
    found = timing.in_turn(runs, setting.repeats)
    what = f"`init --each`, {len(names)} tasks, MiniLM, second moments"
    return Row(what, found["each"], "one task's start", found["one"], 2, "within")


if __name__ == "__main__":
    script("init", measure, __doc__)
