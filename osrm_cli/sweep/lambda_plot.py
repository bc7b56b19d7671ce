"""The robustness curve of a sweep: the tasks' average over lambda, beside the single adapters' average."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osrm_cli.evaluation.scores import ScoredMerge, average
from osrm_cli.sweep.results import SweepResult


def draw_lambda_plot(sweep: SweepResult, path: Path) -> None:
    """Draw the averages that report as a PNG; equal sweeps give equal bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines = _lines(sweep.points)
    colours = {name: f"C{index % 10}" for index, name in enumerate(dict.fromkeys(name for name, _ in lines))}
    for (name, calibrated), points in lines.items():
        ordered = sorted(points, key=lambda point: float(point.options["lambda"]))
        axes.plot(
            [point.options["lambda"] for point in ordered],
            [average(point.test) for point in ordered],
            label=f"{name}, calibrated" if calibrated else name,
            color=colours[name],
            linestyle="--" if calibrated else "-",
            marker="o",
            markersize=4,
        )
    axes.axhline(average(sweep.test), color="gray", linestyle=":", label="single adapters")
    axes.set(xlabel="lambda", ylabel="average headline score", title=f"Merged: {', '.join(sweep.test)}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


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
