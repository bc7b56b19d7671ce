"""Draw the pictures of ``docs/pictures/``, as SVG with a background of its own: legible on light and on dark pages.

python -m scripts.pictures
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).resolve().parent.parent / "docs/pictures"
INK, PALE, ONE, TWO = "#1f2430", "#f7f8fb", "#3b5fc0", "#d9641e"


def main() -> None:
    """Draw all."""
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "osrm",
            "svg.fonttype": "path",
            "font.size": 11,
            "text.color": INK,
            "font.family": "DejaVu Sans",
        }
    )
    FOLDER.mkdir(exist_ok=True)
    for name, draw in {"pipeline": pipeline, "interference": interference}.items():
        figure = draw()
        figure.savefig(FOLDER / f"{name}.svg", facecolor=PALE, metadata={"Date": None, "Creator": None})


def pipeline() -> Figure:
    """The five commands and the files between them, in two rows so that a phone shows them large enough."""
    figure = Figure(figsize=(6.4, 3.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 64), ylim=(0, 37))
    axes.axis("off")
    files = [
        ("data", "texts and labels"),
        ("features/", "activation\nstatistics"),
        ("starts/", "A orthogonal to\nthe other tasks"),
        ("adapters/", "one for each\ntask, trained"),
        ("merged/", "one model\nfor all tasks"),
        ("scores.json", "beside the\nsingle adapters"),
    ]
    for index, (name, text) in enumerate(files):
        left, low = 1.5 + index % 3 * 22.5, 22.5 if index < 3 else 3.5
        color = ONE if index < 4 else TWO
        # Before the merge there is one file per task: a pile of three.
        for shift in (1.2, 0.6, 0.0) if index < 4 else (0.0,):
            shape = "round,pad=0,rounding_size=0.9"
            box = FancyBboxPatch(
                (left + shift, low + shift), 14.5, 10, shape, lw=1.3, edgecolor=color, facecolor="white"
            )
            axes.add_patch(box)
        axes.text(left + 7.25, low + 7.4, name, ha="center", va="center", weight="bold", size=11.5, color=color)
        axes.text(left + 7.25, low + 3.3, text, ha="center", va="center", size=8.8)
    for index, name in enumerate(["collect", "init", "", "merge", "eval"]):
        if name:
            left, low = 17.4 + index % 3 * 22.5, 26.3 if index < 3 else 7.3
            _arrow(axes, (left, low), (left + 5.6, low))
            axes.text(left + 2.8, low + 2.0, name, ha="center", va="center", size=9.5, family="DejaVu Sans Mono")
    _arrow(axes, (52.5, 21.9), (12.5, 15.6))
    axes.text(34, 20.9, "train", ha="center", va="center", size=9.5, family="DejaVu Sans Mono")
    return figure


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, lw=1.4, color=INK, shrinkA=0, shrinkB=0)
    )


def interference() -> Figure:
    """Two tasks' activations, and the energy that both have on a row of A: random, and chosen."""
    draw = np.random.default_rng(3)
    one = draw.normal(size=(110, 2)) * (2.1, 0.22)
    two = draw.normal(size=(110, 2)) * (0.75, 1.5)
    turn = _rotation(np.deg2rad(28))
    one, two = one @ turn.T, two @ turn.T
    least = np.linalg.eigh(one.T @ one)[1][:, 0]
    chosen = least * np.sign(least[1])
    random = _rotation(np.deg2rad(75)) @ np.array([1.0, 0.0])
    figure = Figure(figsize=(6.4, 4.5))
    rows = figure.subplots(2, 2, height_ratios=(3.4, 1), squeeze=True)
    figure.subplots_adjust(left=0.14, right=0.985, top=0.93, bottom=0.09, wspace=0.06, hspace=0.06)
    titles = ("random row of A", "chosen row of A")
    for column, (row, title) in enumerate(zip((random, chosen), titles, strict=True)):
        _cloud(rows[0, column], one, two, row, title)
        _energies(rows[1, column], [float(((cloud @ row) ** 2).mean()) for cloud in (one, two)], column == 0)
    return figure


def _cloud(axes: Axes, one: np.ndarray, two: np.ndarray, row: np.ndarray, title: str) -> None:
    for cloud, color, name in ((one, ONE, "task 1"), (two, TWO, "task 2")):
        axes.scatter(*cloud.T, s=11, color=color, alpha=0.65, lw=0, label=name)
    axes.annotate("", row * 3.4, -row * 3.4, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.8})
    label = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(*(row * 3.4 + np.array([0.35, 0.0])), "row of $A_2$", size=10.5, va="center", bbox=label)
    axes.set(xlim=(-4.7, 4.7), ylim=(-4.7, 4.7), aspect="equal", xticks=[], yticks=[], facecolor="white")
    axes.set_title(title, size=11.5, weight="bold")
    if title.startswith("random"):
        axes.legend(loc="lower right", fontsize=9.5, framealpha=0.9, handletextpad=0.2)


def _energies(axes: Axes, energies: list[float], named: bool) -> None:
    axes.barh([1, 0], energies, color=[ONE, TWO], height=0.62)
    for position, energy in zip((1, 0), energies, strict=True):
        axes.text(energy + 0.06, position, f"{energy:.2f}", va="center", size=9.5)
    axes.set(xlim=(0, 5.2), ylim=(-0.6, 1.6), xticks=[], facecolor=PALE)
    axes.set_yticks([1, 0], ["on task 1", "on task 2"] if named else ["", ""])
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xlabel("energy along the row", size=10, color=INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


if __name__ == "__main__":
    main()
