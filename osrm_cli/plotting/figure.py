"""Plots: panels that are drawn together as a PNG, or as SVG that takes its ink from the page."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's colours, which people of any colour vision can tell apart; they are seen on black and on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a68a00", "#8c6bb1")
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":", "-.")
_GRAY = "#808080"
_INK = "#123457"  # stands for the page's own colour until the SVG is put there
_PANEL = (4.4, 3.2)  # inches
_ROWS_PANEL = 3.0  # width of a panel beside whose rows names stand, without these
_COLUMNS = 3  # panels beside each other
_LEGEND_PANEL = 5.6  # width of a single panel with a legend below
_CHARACTER, _TITLE_CHARACTER = 0.085, 0.105  # width of a character, in inches
_NAME, _NARROW_NAME = 30, 22  # characters of a name in a line, beside several panels and beside one
_DPI = 120


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        draw: Draws on the axes.
        cells: Rows and columns of a matrix, where it shows one.
    """

    title: str
    draw: Callable[[Axes], None]
    cells: int = 0


@dataclass(frozen=True)
class Plot:
    """Panels with one legend.

    Attributes:
        name: Of its file.
        title: What it shows.
        caption: How to read it.
        panels: At least one.
        legend: Pairs of a name and the style of its lines.
        rows: Names down the vertical axis, which all panels share, the first on top; none where axes have numbers.
        x_label: What the horizontal axes of such panels show.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, Mapping[str, Any]]] = ()
    rows: Sequence[str] = ()
    x_label: str = ""


def plot_line_style(place: int, baseline: bool = False) -> dict[str, Any]:
    """How an arm's lines look: gray for the baseline, else by the arm's place."""
    colour = _GRAY if baseline else _COLOURS[place % len(_COLOURS)]
    line = "-" if baseline else _LINES[place // len(_COLOURS) % len(_LINES)]
    return {"color": colour, "marker": _MARKERS[place % len(_MARKERS)], "linestyle": line, "markersize": 5}


def render_png(plot: Plot) -> bytes:
    """All panels on white, with the legend below; the same bytes for the same numbers."""
    with _figure_style(plot.name, "black"):
        return _save_figure(
            _draw_figure_panels(plot, plot.panels, _count_panel_columns(len(plot.panels)), plot.legend), "png"
        )


def render_plot_svgs(plot: Plot) -> Iterator[str]:
    """Each panel as an SVG element without a legend, its text and axes in the colour of the text around it."""
    for index, panel in enumerate(plot.panels):
        with _figure_style(f"{plot.name}-{index}", _INK):  # the salt keeps ids apart on one page
            yield _plot_as_svg(_save_figure(_draw_figure_panels(plot, [panel], 1), "svg"))


def render_wide_svg(plot: Plot) -> str:
    """All panels as one SVG element, names standing once in a row of panels."""
    with _figure_style(f"{plot.name}-wide", _INK):
        return _plot_as_svg(
            _save_figure(_draw_figure_panels(plot, plot.panels, _count_panel_columns(len(plot.panels))), "svg")
        )


def _draw_figure_panels(
    plot: Plot, panels: Sequence[Panel], columns: int, legend: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> Figure:
    names = [_wrap_figure_text(name, _NAME if columns > 1 else _NARROW_NAME) for name in plot.rows]
    longest = max((len(line) for name in names for line in name.splitlines()), default=0)
    width, height = _figure_panel_size(names, max(panel.cells for panel in panels))
    width = max(width, _LEGEND_PANEL) if legend and columns == 1 else width
    rows = math.ceil(len(panels) / columns)
    size = columns * width + longest * _CHARACTER, rows * height
    beside = max(1, int(size[0] / (max((len(name) for name, _ in legend), default=0) * _CHARACTER + 0.6)))
    lines = math.ceil(len(legend) / beside)
    figure = Figure(figsize=(size[0], size[1] + 0.25 * lines), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=bool(names)).ravel()
    for one, panel in zip(axes, panels, strict=False):
        one.set_title(_wrap_figure_text(panel.title, int((width if names else width - 1.0) / _TITLE_CHARACTER)))
        panel.draw(one)
        if names:
            one.grid(axis="x")
    for one in axes[len(panels) :]:
        one.set_axis_off()
    if names:
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        label = _wrap_figure_text(plot.x_label, int((size[0] if len(panels) > 1 else width) / _CHARACTER))
        axes[0].set_xlabel(label) if len(panels) == 1 else figure.supxlabel(label, fontsize="medium")
    if legend:
        handles = [Line2D([], [], label=name, **style) for name, style in legend]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(beside, len(handles)), frameon=False)
    return figure


def _count_panel_columns(panels: int) -> int:
    return 2 if panels == 4 else min(panels, _COLUMNS)


def _wrap_figure_text(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False)


def _figure_panel_size(names: Sequence[str], cells: int) -> tuple[float, float]:
    """Width without the names, and height, in inches."""
    if names:
        return _ROWS_PANEL, 0.9 + sum(0.12 + 0.17 * (1 + name.count("\n")) for name in names)
    return max(_PANEL[0], 0.45 * cells + 1.2), max(_PANEL[1], 0.38 * cells + 1.0)


def _plot_as_svg(content: bytes) -> str:
    whole = content.decode()
    element = whole[whole.index("<svg") :].replace(_INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
    element = re.sub(r'<g id="[^"]*"', "<g", element)  # the same in every figure, and nothing refers to them
    return re.sub(r' (?:width|height)="[0-9.]+pt"', "", element, count=2).strip()


@contextmanager
def _figure_style(salt: str, ink: str) -> Iterator[None]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    more: dict[str, Any] = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 11}
    more |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": _GRAY, "grid.alpha": 0.25}
    with rc_context(dict.fromkeys(inked, ink) | more):
        yield


def _save_figure(figure: Figure, form: str) -> bytes:
    target = io.BytesIO()
    if form == "png":
        figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None})
    else:
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return target.getvalue()
