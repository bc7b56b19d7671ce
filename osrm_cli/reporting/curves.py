"""Averages against a number: lambda, the number of tasks, or a setting of the adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.reporting.arms import Arm, label_arms, make_arm
from osrm_cli.reporting.comparison import Comparison, MeanStd, mean_known, summarize_repetitions
from osrm_cli.reporting.runs import RunTable

_MAX = 1e15  # of a setting

Points = dict[float, list[float]]  # y by x, one for each repetition
Lines = dict[str, dict[int, Points]]  # by panel, then by index of the line


@dataclass(frozen=True)
class Curves:
    """What one plot of curves shows.

    Attributes:
        name: Of the plot.
        title: Of the plot.
        caption: How to read it.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        needs: What files must hold for it.
        panels: By way of merging: of each line the means and deviations over x.
        lines: Names of the lines; the arms' where there are none.
    """

    name: str
    title: str
    caption: str
    x: str
    y: str
    needs: str
    panels: Mapping[str, Mapping[int, Mapping[float, MeanStd]]]
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class _Setting:
    """A setting whose effect is drawn.

    Attributes:
        label: What the axis says.
        along: Settings that may differ along with it.
        absent: What the absence of these means.
    """

    label: str
    along: tuple[str, ...] = ()
    absent: Mapping[str, Any] | None = None


_SETTINGS = {
    "examples": _Setting("sample size k"),
    "rank": _Setting("rank", ("alpha",)),
    "interference_penalty": _Setting(
        "interference penalty", absent={"interference_penalty": 0.0, "penalty_unit": "base"}
    ),
}


def trace_curves(comparison: Comparison) -> list[Curves]:
    """All curves, over lambda first; panels are empty where the files do not hold what a curve needs."""
    return [
        _curves_over_lambda(comparison.table),
        _curves_over_tasks(comparison.table),
        *(_curves_over_setting(comparison, key) for key in _SETTINGS),
    ]


def _curves_over_lambda(table: RunTable) -> Curves:
    """Averages by way of merging and arm; a sweep's other options are those that it chose."""
    lines: Lines = {}
    for run in table.runs:
        if run.curve is not None and run.scale is not None and run.in_tables:
            _add_curve_point(lines, run.curve, run.arm, run.scale, run.average)
    note = "Average over the tasks against the scale lambda of the merged update; bars are one standard deviation."
    needs = "robustness to lambda (one method at two values of lambda)"
    return Curves(
        "lambda", "Robustness to lambda", note, "lambda", "average score, %", needs, _summarize_curve_lines(lines)
    )


def _curves_over_tasks(table: RunTable) -> Curves:
    """What is kept of the single scores, by the number of merged tasks."""
    lines: Lines = {}
    for run in table.runs:
        if run.kind and run.kind.method and set(run.single) == set(run.tasks):
            shares = [
                100 * score.headline / run.single[task].headline if run.single[task].headline > 0 else None
                for task, score in run.tasks.items()
            ]
            share = mean_known(shares)
            if share is not None:
                _add_curve_point(lines, run.kind.label, run.arm, float(run.merged_tasks), share)
    note = "Share of the single adapters' scores that the merged model keeps, against the number of merged tasks."
    needs = "number of tasks (files that merge fewer of the tasks)"
    return Curves(
        "tasks", "Number of tasks", note, "merged tasks", "of single, %", needs, _summarize_curve_lines(lines)
    )


def _curves_over_setting(comparison: Comparison, key: str) -> Curves:
    """Averages over one setting of the adapters, a line for each group of arms that differ in it alone."""
    setting, arms, table = _SETTINGS[key], comparison.table.arms.arms, comparison.table
    absent = setting.absent or {}
    reduced = [_arm_without_settings(arm, {key, *setting.along}, absent) for arm in arms]
    groups = list(dict.fromkeys(map(_arm_settings_key, reduced)))
    group_of = [groups.index(_arm_settings_key(arm)) for arm in reduced]
    lines: Lines = {}
    for row in comparison.rows:
        value = arms[row.arm].values.get(key)
        value = absent.get(key) if value is None else value
        if isinstance(value, int | float) and abs(value) < _MAX:
            for run in table.cells[row.kind, row.arm].values():
                _add_curve_point(lines, row.kind.label, group_of[row.arm], float(value), run.average)
    names = [arm.label for arm in label_arms([reduced[group_of.index(index)] for index in range(len(groups))])]
    note = f"Average over the tasks against the {setting.label}; everything else is the same along a line."
    needs = f"{setting.label} (arms that differ in it alone)"
    title, panels = setting.label.capitalize(), _summarize_curve_lines(lines)
    return Curves(key.replace("_", "-"), title, note, setting.label, "average score, %", needs, panels, names)


def _add_curve_point(lines: Lines, panel: str, line: int, x: float, y: float) -> None:
    lines.setdefault(panel, {}).setdefault(line, {}).setdefault(x, []).append(y)


def _summarize_curve_lines(lines: Lines) -> Mapping[str, Mapping[int, Mapping[float, MeanStd]]]:
    return {
        panel: {
            line: {x: summarize_repetitions(points[x]) for x in sorted(points)}
            for line, points in sorted(by_line.items())
        }
        for panel, by_line in lines.items()
    }


def _arm_without_settings(arm: Arm, keys: set[str], absent: Mapping[str, Any]) -> Arm:
    known = {task: {**absent, **own} for task, own in arm.settings.items()}
    return make_arm("", {task: {k: v for k, v in own.items() if k not in keys} for task, own in known.items()})


def _arm_settings_key(arm: Arm) -> tuple[Any, ...]:
    return tuple((task, *sorted(own.items(), key=lambda pair: pair[0])) for task, own in sorted(arm.settings.items()))
