"""Plots: what is shared stands once, and all text lies inside the image."""

import re

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from osrm_cli.plotting import figure
from osrm_cli.plotting.figure import Panel, Plot, plot_line_style, render_plot_svgs, render_png, render_wide_svg
from osrm_cli.plotting.heatmap import draw_heatmap

NAMES = [f"an arm with the long name {place}, penalty 3, fresh head" for place in range(5)]
LONG = "task-arith, chosen on validation, calibrated, density 0.2, rank 16"


def draw(axes: Axes) -> None:
    axes.plot(range(5), range(5))


def rows_plot(panels: int) -> Plot:
    return Plot(
        "gain",
        "Gain",
        "",
        [Panel(f"{LONG} {n}", draw) for n in range(panels)],
        rows=NAMES,
        x_label="points " * 9 + "above",
    )


def curve_plot(panels: int) -> Plot:
    legend = [(name, plot_line_style(place)) for place, name in enumerate(NAMES)]
    return Plot("lambda", "Lambda", "", [Panel(f"{LONG} {n}", draw) for n in range(panels)], legend)


def heat_plot() -> Plot:
    tasks = [f"a-long-task-name-{place}" for place in range(8)]
    panel = Panel(LONG, draw_heatmap(tasks, [[0.5] * 8] * 8), 8)
    return Plot("heat", "Heat", "", [panel])


PLOTS = [*map(rows_plot, (1, 2, 3, 4, 6)), *map(curve_plot, (1, 2, 4, 5)), heat_plot()]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: f"{plot.name}-{len(plot.panels)}")
def test_no_text_is_cut_off_and_none_runs_into_another(plot: Plot) -> None:
    drawn = figure._draw_figure_panels(plot, plot.panels, figure._count_panel_columns(len(plot.panels)), plot.legend)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    shared = [part for part in (drawn._supxlabel, *drawn.legends) if part]
    titles = [part for axes in drawn.axes for part in (axes.title, axes.xaxis.label) if part.get_text()]
    named = drawn.axes if plot.rows or plot.panels[0].cells else []
    labels = [label for axes in named for label in axes.get_yticklabels() if label.get_text()]
    boxes = [part.get_window_extent(canvas.get_renderer()) for part in [*shared, *titles, *labels]]
    width, height = canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for place, box in enumerate(boxes[: len(shared) + len(titles)]):
        assert box.count_overlaps(boxes[place + 1 :]) == 0


def test_names_stand_once_in_a_row_of_panels_and_the_axis_s_title_once() -> None:
    wide = re.sub(r"<[^>]*>", "|", render_wide_svg(rows_plot(6)))
    assert wide.count("name 3") == 2
    assert wide.count("above") == 1
    narrow = list(render_plot_svgs(rows_plot(6)))
    assert len(narrow) == 6
    assert all("name 3" in re.sub(r"<[^>]*>", "|", svg) for svg in narrow)


def test_the_same_plot_has_the_same_bytes() -> None:
    assert render_png(rows_plot(2)) == render_png(rows_plot(2))
    assert render_wide_svg(rows_plot(2)) == render_wide_svg(rows_plot(2))


def test_arms_look_different() -> None:
    styles = {tuple(plot_line_style(place).items()) for place in range(32)}
    assert len(styles) == 32
    assert tuple(plot_line_style(0, baseline=True).items()) not in styles
