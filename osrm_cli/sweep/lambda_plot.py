"""The robustness curve of a sweep: the tasks' average over lambda, beside the single adapters' average."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osrm_cli.evaluation.scores import ScoredMerge, average
from osrm_cli.sweep.results import SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render_lambda_plot(sweep: SweepResult) -> bytes:
    """Draw the averages that report as a PNG; equal sweeps give equal bytes."""
    from osrm_cli.plotting.figure import Panel, Plot, line_style, render_png

    lines = _lines(sweep.points)
    places = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in lines))}
    styles = {
        (name, calibrated): {**line_style(places[name]), "linestyle": "--" if calibrated else "-"}
        for name, calibrated in lines
    }
    single: dict[str, Any] = {"color": "gray", "linestyle": ":"}

    def draw(axes: "Axes") -> None:
        for line, points in lines.items():
            ordered = sorted(points, key=lambda point: float(point.options["lambda"]))
            scales = [point.options["lambda"] for point in ordered]
            axes.plot(scales, [average(point.test) for point in ordered], **styles[line])
        axes.axhline(average(sweep.test), **single)
        axes.set(xlabel="lambda", ylabel="average score, %")
        axes.grid()

    legend = [(f"{name}, calibrated" if calibrated else name, styles[name, calibrated]) for name, calibrated in lines]
    panel = Panel(f"Merged: {', '.join(sweep.test)}", draw)
    return render_png(Plot("curve", "Robustness to lambda", "", [panel], [*legend, ("single adapters", single)]))


def _lines(points: Sequence[ScoredMerge]) -> dict[tuple[str, bool], list[ScoredMerge]]:
    """Points that differ in lambda alone, by name and whether they are calibrated.

    A line is named after its method, and the options in which lines of that method differ.
    """
    seen: dict[str, dict[str, set[Any]]] = {}
    for point in points:
        for option, value in _others(point.options).items():
            seen.setdefault(point.method, {}).setdefault(option, set()).add(value)
    found: dict[tuple[str, bool], list[ScoredMerge]] = {}
    for point in points:
        varied = (f"{o} {v}" for o, v in _others(point.options).items() if len(seen[point.method][o]) > 1)
        found.setdefault((" ".join((point.method, *varied)), point.calibrated), []).append(point)
    return found


def _others(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(options.items()) if name != "lambda"}
