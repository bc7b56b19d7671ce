"""The interference matrix of ``osrm diagnose``: how much one task's update does to another task's inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from osrm_cli.plotting.figure import Panel, Picture
from osrm_cli.reporting.comparison import Comparison


def interference(comparison: Comparison) -> Picture | None:
    """A heat map for each diagnosis that holds a matrix."""
    panels = []
    for name, facts in sorted(comparison.diagnoses.items()):
        found = _matrix(facts.get("interference"))
        if found:
            panels.append(Panel(name if len(comparison.diagnoses) > 1 else "", heat(*found)))
    note = "Energy of the update of the task on the left on inputs of the task below, as a share of the base model's."
    return Picture("interference", "Interference matrix", note, panels) if panels else None


def _matrix(found: Any) -> tuple[list[str], list[list[float]]] | None:
    """Tasks and values; nothing where the file holds no matrix of numbers."""
    if not isinstance(found, Mapping):
        return None
    tasks = [str(task) for task in found]
    try:
        return tasks, [[float(found[row][column]) for column in tasks] for row in tasks]
    except (KeyError, TypeError, ValueError):
        return None


def heat(tasks: Sequence[str], values: Sequence[Sequence[float]]) -> Callable[[Axes], None]:
    """What draws a matrix as coloured fields with their numbers, the first row on top."""

    def draw(axes: Axes) -> None:
        top = max(map(max, values)) or 1.0
        axes.pcolormesh(values, cmap="YlOrRd", vmin=0, vmax=top, edgecolors="white", linewidth=1)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                ink = "white" if value > 0.6 * top else "black"
                axes.text(column + 0.5, row + 0.5, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks([place + 0.5 for place in range(len(tasks))], tasks, rotation=40, ha="right")
        axes.set_yticks([place + 0.5 for place in range(len(tasks))], tasks)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return draw
