"""Plot a sweep: the average score over lambda, and the single adapters' average."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osrm_cli.evaluation.scores import ScoredMerge, average
from osrm_cli.sweep.results import SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render_lambda_plot(sweep: SweepResult) -> bytes:
    """Draw the average test scores as a PNG; equal sweeps give equal bytes."""
    from osrm_cli.plotting.figure import Panel, Plot, plot_line_style, render_png

    lines = _group_sweep_points(sweep.points)
    indices = {name: index for index, name in enumerate(dict.fromkeys(name for name, _ in lines))}
    styles = {
        (name, calibrated): {**plot_line_style(indices[name]), "linestyle": "--" if calibrated else "-"}
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


def _group_sweep_points(points: Sequence[ScoredMerge]) -> dict[tuple[str, bool], list[ScoredMerge]]:
    """Points that differ only in lambda, by name and whether they are calibrated.

    A line is named after its method, and the options in which lines of that method differ.
    """
    values_seen: dict[str, dict[str, set[Any]]] = {}
    for point in points:
        for option, value in _options_but_lambda(point.options).items():
            values_seen.setdefault(point.method, {}).setdefault(option, set()).add(value)
    lines: dict[tuple[str, bool], list[ScoredMerge]] = {}
    for point in points:
        differing = (
            f"{o} {v}" for o, v in _options_but_lambda(point.options).items() if len(values_seen[point.method][o]) > 1
        )
        lines.setdefault((" ".join((point.method, *differing)), point.calibrated), []).append(point)
    return lines


def _options_but_lambda(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(options.items()) if name != "lambda"}
