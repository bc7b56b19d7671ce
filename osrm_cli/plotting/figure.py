"""Pictures: panels that are drawn together as a PNG, or one by one as SVG that takes its ink from the page."""

import io
import math
import re
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
_GRAY = "#808080"
_INK = "#123457"  # stands for the page's own colour until the SVG is put there
_PANEL = (4.4, 3.2)  # inches
_DPI = 120


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        draw: Draws on the axes.
        rows: Number of lines of text on its vertical axis, where it has names there.
    """

    title: str
    draw: Callable[[Axes], None]
    rows: int = 0


@dataclass(frozen=True)
class Picture:
    """Panels with one legend.

    Attributes:
        name: Of its file.
        title: What it shows.
        caption: How to read it.
        panels: At least one.
        legend: Pairs of a name and the style of its lines.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, Mapping[str, Any]]] = ()


def style(place: int, baseline: bool = False) -> dict[str, Any]:
    """How an arm's lines look: gray for the baseline, else by the arm's place."""
    colour = _GRAY if baseline else _COLOURS[place % len(_COLOURS)]
    dashed = "--" if place >= len(_COLOURS) and not baseline else "-"
    return {"color": colour, "marker": _MARKERS[place % len(_MARKERS)], "linestyle": dashed, "markersize": 5}


def png(picture: Picture) -> bytes:
    """All panels on white, with the legend below; the same bytes for the same numbers."""
    columns = min(len(picture.panels), 3)
    rows = math.ceil(len(picture.panels) / columns)
    lines = math.ceil(len(picture.legend) / columns)
    height = rows * max(map(_height, picture.panels)) + 0.25 * lines
    with _looks(picture.name, "black"):
        figure = Figure(figsize=(_PANEL[0] * columns + 1.0 * (columns == 1), height), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(places, picture.panels, strict=False):
            _fill(axes, panel)
        for axes in places[len(picture.panels) :]:
            axes.set_axis_off()
        if picture.legend:
            handles = [Line2D([], [], label=name, **look) for name, look in picture.legend]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), frameon=False)
        return _saved(figure, "png")


def svgs(picture: Picture) -> Iterator[str]:
    """Each panel as an SVG element without a legend, its text and axes in the colour of the text around it."""
    for index, panel in enumerate(picture.panels):
        with _looks(f"{picture.name}-{index}", _INK):  # the salt keeps ids apart on one page
            figure = Figure(figsize=(_PANEL[0], _height(panel)), layout="constrained")
            _fill(figure.subplots(), panel)
            whole = _saved(figure, "svg").decode()
        element = whole[whole.index("<svg") :].replace(_INK, "currentColor")
        element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
        element = re.sub(r'<g id="[^"]*"', "<g", element)  # the same in every figure, and nothing refers to them
        yield re.sub(r' (?:width|height)="[0-9.]+pt"', "", element, count=2).strip()


def _height(panel: Panel) -> float:
    return max(_PANEL[1] if not panel.rows else 0.0, 1.0 + 0.28 * panel.rows)


def _fill(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    panel.draw(axes)


@contextmanager
def _looks(salt: str, ink: str) -> Iterator[None]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    more: dict[str, Any] = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 11}
    more |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": _GRAY, "grid.alpha": 0.25}
    with rc_context(dict.fromkeys(inked, ink) | more):
        yield


def _saved(figure: Figure, form: str) -> bytes:
    target = io.BytesIO()
    if form == "png":
        figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None})
    else:
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return target.getvalue()
