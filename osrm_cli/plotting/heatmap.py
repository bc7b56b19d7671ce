"""Heat maps."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes


def draw_heatmap(names: Sequence[str], values: Sequence[Sequence[float]]) -> Callable[[Axes], None]:
    """What draws a matrix as coloured fields with their numbers, the first row on top."""

    def draw(axes: Axes) -> None:
        top = max(map(max, values)) or 1.0
        axes.pcolormesh(values, cmap="YlOrRd", vmin=0, vmax=top, edgecolors="white", linewidth=1)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                ink = "white" if value > 0.6 * top else "black"
                axes.text(column + 0.5, row + 0.5, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks([place + 0.5 for place in range(len(names))], names, rotation=40, ha="right")
        axes.set_yticks([place + 0.5 for place in range(len(names))], names)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return draw
