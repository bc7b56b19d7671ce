"""Averages against a number: lambda, the number of tasks, or a setting of the adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes

from osrm_cli.plotting.figure import Panel, Picture, style
from osrm_cli.reporting import arms as arms_of
from osrm_cli.reporting import runs as studies
from osrm_cli.reporting.arms import Arm
from osrm_cli.reporting.comparison import Comparison, Spread, mean
from osrm_cli.reporting.runs import Kind

# Settings whose effect is drawn: what the axis says, what may differ along with them, and what absence means.
SETTINGS: dict[str, tuple[str, tuple[str, ...], Mapping[str, Any]]] = {
    "examples": ("sample size k", (), {}),
    "rank": ("rank", ("alpha",), {}),
    "interference_penalty": ("interference penalty", (), {"interference_penalty": 0.0, "penalty_unit": "base"}),
}
Curve = dict[float, list[float]]  # y by x, one for each repetition


def over_lambda(comparison: Comparison) -> dict[str, dict[int, Curve]]:
    """Averages over lambda by way of merging and arm; a sweep's other options are those that it chose."""
    curves: dict[str, dict[int, Curve]] = {}
    study = comparison.study
    for file in filter(study.all_tasks, study.files):
        kept = {(merge.method, merge.calibrated): _others(merge.options) for merge in file.merges if merge.chosen}
        for merge in file.merges:
            others, scale = _others(merge.options), merge.options.get("lambda")
            if scale is None or kept.get((merge.method, merge.calibrated), others) != others:
                continue
            fixed = "" if merge.validation else studies.told(replace(merge, options=others), study.files)
            panel = Kind(merge.method, fixed, merge.calibrated).label
            average = mean(score.headline for score in merge.test.values())
            curve = curves.setdefault(panel, {}).setdefault(study.arm_of[file.name], {})
            curve.setdefault(float(scale), []).append(average or 0.0)
    return curves


def robustness(comparison: Comparison) -> Picture | None:
    """Averages over lambda, drawn."""
    curves = over_lambda(comparison)
    note = "Average over the tasks against the scale lambda of the merged update; bars are one standard deviation."
    return _curves(comparison, "lambda", "Robustness to lambda", note, curves, ("lambda", "average score, %"))


def number_of_tasks(comparison: Comparison) -> Picture | None:
    """What is kept of the single scores, by the number of merged tasks."""
    curves: dict[str, dict[int, Curve]] = {}
    study = comparison.study
    for file in study.files:
        for kind, _, run in studies.runs(file, study.files):
            if not kind.method or set(file.single) != set(run.tasks):
                continue
            shares = [
                100 * score.headline / file.single[task].headline if file.single[task].headline > 0 else None
                for task, score in run.tasks.items()
            ]
            share = mean(shares)
            if share is not None:
                curve = curves.setdefault(kind.label, {}).setdefault(study.arm_of[file.name], {})
                curve.setdefault(float(len(file.adapters)), []).append(share)
    note = "Share of the single adapters' scores that the merged model keeps, against the number of merged tasks."
    return _curves(comparison, "tasks", "Number of tasks", note, curves, ("merged tasks", "of single, %"))


def setting(key: str) -> Callable[[Comparison], Picture | None]:
    """Averages over one setting of the adapters, a line for each group of arms that differ in it alone."""
    name, along, absent = SETTINGS[key]

    def make(comparison: Comparison) -> Picture | None:
        reduced = [_without(arm, {key, *along}, absent) for arm in comparison.study.arms]
        groups = list(dict.fromkeys(map(_identity, reduced)))
        group_of = [groups.index(_identity(arm)) for arm in reduced]
        firsts = [reduced[group_of.index(index)] for index in range(len(groups))]
        curves: dict[str, dict[int, Curve]] = {}
        for row in comparison.rows:
            value = comparison.study.arms[row.arm].value(key)
            value = absent.get(key) if value is None else value
            if isinstance(value, int | float):
                averages = [run.average for run in comparison.study.of(row.kind, row.arm).values()]
                curve = curves.setdefault(row.kind.label, {}).setdefault(group_of[row.arm], {})
                curve.setdefault(float(value), []).extend(averages)
        names = [arm.label for arm in arms_of.label(firsts)]
        note = f"Average over the tasks against the {name}; everything else is the same along a line."
        return _curves(
            comparison, key.replace("_", "-"), name.capitalize(), note, curves, (name, "average score, %"), names
        )

    return make


def _curves(
    comparison: Comparison,
    name: str,
    title: str,
    note: str,
    curves: Mapping[str, Mapping[int, Curve]],
    axis: tuple[str, str],
    names: Sequence[str] | None = None,
) -> Picture | None:
    """A panel for each kind, with the lines that have two points or more."""
    long = {kind: {index: curve for index, curve in lines.items() if len(curve) > 1} for kind, lines in curves.items()}
    drawn = {kind: lines for kind, lines in long.items() if lines}
    if not drawn:
        return None
    look = comparison.look if names is None else style
    called = [arm.label for arm in comparison.study.arms] if names is None else names
    panels = [Panel(kind, _lines(lines, look, *axis)) for kind, lines in drawn.items()]
    legend = [(called[index], look(index)) for index in sorted({index for lines in drawn.values() for index in lines})]
    return Picture(name, title, note, panels, legend)


def _lines(lines: Mapping[int, Curve], look: Callable[[int], dict[str, Any]], x: str, y: str) -> Callable[[Axes], None]:
    """Lines through means, values of x at equal distances: ranks and sample sizes double or grow tenfold."""
    values = sorted({value for curve in lines.values() for value in curve})

    def draw(axes: Axes) -> None:
        for index, curve in sorted(lines.items()):
            spreads = {at: Spread.of(curve[at]) for at in sorted(curve)}
            known = {values.index(at): spread for at, spread in spreads.items() if spread}
            drawn = axes.errorbar(
                list(known),
                [spread.mean for spread in known.values()],
                [spread.sd or 0.0 for spread in known.values()],
                elinewidth=1,
                **look(index),
            )
            for bar in drawn.lines[2]:
                bar.set_alpha(0.4)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set(xlabel=x, ylabel=y)
        axes.grid()

    return draw


def _others(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in studies.plain(options).items() if name != "lambda"}


def _without(arm: Arm, keys: set[str], absent: Mapping[str, Any]) -> Arm:
    kept = {task: {**absent, **own} for task, own in arm.settings.items()}
    return Arm({task: {key: value for key, value in own.items() if key not in keys} for task, own in kept.items()})


def _identity(arm: Arm) -> tuple[Any, ...]:
    return tuple((task, *sorted(own.items(), key=lambda pair: pair[0])) for task, own in sorted(arm.settings.items()))
