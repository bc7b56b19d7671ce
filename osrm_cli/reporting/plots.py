"""The plots of a report, each drawn only where the files hold what it needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from osrm_cli.plotting.figure import Panel, Plot, plot_line_style
from osrm_cli.plotting.heatmap import draw_heatmap
from osrm_cli.reporting.comparison import Comparison, ComparisonRow, MeanStd, mean_known
from osrm_cli.reporting.curves import Curves
from osrm_cli.reporting.inputs import Diagnosis

Style = dict[str, Any]


def make_report_plots(
    comparison: Comparison, curves: Sequence[Curves], diagnoses: Mapping[str, Diagnosis]
) -> tuple[list[Plot], list[str]]:
    """Every plot that can be drawn, and for the others what they need."""
    arms = [arm.label for arm in comparison.table.arms.arms]
    styles = [plot_line_style(arm, arm == comparison.baseline) for arm in range(len(arms))]
    made = [
        (
            _gains_plot(comparison, arms, styles, single=False),
            "gain over the baseline (a baseline arm and another one)",
        ),
        *((_curve_plot(each, arms, styles), each.needs) for each in curves),
        (
            _gains_plot(comparison, arms, styles, single=True),
            "single-task gap (single scores of a baseline arm and another one)",
        ),
        (_drift_plot(comparison, arms, styles), "drift of A (adapters of 'osrm train')"),
        (_interference_plot(diagnoses), "interference matrix (diagnosis.json of 'osrm diagnose')"),
    ]
    return [plot for plot, _ in made if plot], [needs for plot, needs in made if not plot]


def _gains_plot(comparison: Comparison, arms: Sequence[str], styles: Sequence[Style], single: bool) -> Plot | None:
    """Differences from the baseline with their intervals: of single adapters, or of merged models."""
    rows_of = {
        kind.label: {row.arm: row for row in rows if row.difference}
        for kind, rows in comparison.rows_of.items()
        if bool(kind.method) is not single
    }
    shown = sorted({arm for rows in rows_of.values() for arm in rows})
    if not shown or comparison.baseline is None:
        return None
    against = arms[comparison.baseline]
    panels = [
        Panel("" if single else kind, _arm_differences_panel([rows.get(arm) for arm in shown], styles))
        for kind, rows in rows_of.items()
        if rows
    ]
    what = "of single adapters" if single else "of the merged model"
    return Plot(
        "single-gap" if single else "gain",
        "Single-task gap" if single else f"Gain over {against}",
        f"Difference {what} from {against}, averaged over the tasks; bars are 95% intervals.",
        panels,
        rows=[arms[arm] for arm in shown],
        x_label=f"points above {against}",
    )


def _arm_differences_panel(rows: Sequence[ComparisonRow | None], styles: Sequence[Style]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            if row is None or row.difference is None:
                continue
            style, found = styles[row.arm], row.difference
            axes.plot(found.mean, place, **{**style, "linestyle": "none"})
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=style["color"], linewidth=2)
        axes.axvline(0, color="#808080", linewidth=1)

    return draw


def _drift_plot(comparison: Comparison, arms: Sequence[str], styles: Sequence[Style]) -> Plot | None:
    """How far training moved each arm's A."""
    table, found = comparison.table, dict[int, dict[str, dict[str, float]]]()  # by arm, task and seed
    for file in table.main_files:
        for task, adapter in file.adapters.items():
            if adapter.drift is not None:
                by_seed = found.setdefault(table.arms.arm_of[file.name], {}).setdefault(task, {})
                by_seed[table.arms.seed_of[file.name]] = 100 * adapter.drift
    if not found:
        return None

    def draw(axes: Axes) -> None:
        for place, (arm, by_task) in enumerate(sorted(found.items())):
            values = [mean_known(by_seed.values()) or 0.0 for by_seed in by_task.values()]
            axes.barh(place, mean_known(values) or 0.0, color=styles[arm]["color"], alpha=0.45, height=0.6)
            axes.plot(values, [place] * len(values), "o", color=styles[arm]["color"], markersize=3.5)

    note = "How far training moved A from its start, up to a rotation: the mean of the tasks, and a dot for each task."
    names = [arms[arm] for arm in sorted(found)]
    return Plot("drift", "Drift of A", note, [Panel("", draw)], rows=names, x_label="drift of A, % of its norm")


def _curve_plot(curves: Curves, arms: Sequence[str], styles: Sequence[Style]) -> Plot | None:
    """A panel for each way of merging, with the lines that have two points or more."""
    long = {
        panel: {index: line for index, line in lines.items() if len(line) > 1} for panel, lines in curves.panels.items()
    }
    drawn = {panel: lines for panel, lines in long.items() if lines}
    if not drawn:
        return None
    names = curves.lines or arms
    if curves.lines:
        styles = [plot_line_style(index) for index in range(len(names))]
    panels = [Panel(panel, _report_curves_panel(lines, styles, curves.x, curves.y)) for panel, lines in drawn.items()]
    indices = sorted({index for lines in drawn.values() for index in lines})
    legend = [(names[index], styles[index]) for index in indices]
    return Plot(curves.name, curves.title, curves.caption, panels, legend)


def _report_curves_panel(
    lines: Mapping[int, Mapping[float, MeanStd]], styles: Sequence[Style], x: str, y: str
) -> Callable[[Axes], None]:
    """Lines through means, values of x at equal distances: ranks and sample sizes double or grow tenfold."""
    values = sorted({value for line in lines.values() for value in line})

    def draw(axes: Axes) -> None:
        for index, line in lines.items():
            drawn = axes.errorbar(
                [values.index(at) for at in line],
                [point.mean for point in line.values()],
                [point.sd or 0.0 for point in line.values()],
                elinewidth=1,
                **styles[index],
            )
            for bar in drawn.lines[2]:
                bar.set_alpha(0.4)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set(xlabel=x, ylabel=y)
        axes.grid()

    return draw


def _interference_plot(diagnoses: Mapping[str, Diagnosis]) -> Plot | None:
    """A heat map for each diagnosis that holds a matrix."""
    panels = []
    for name, found in sorted(diagnoses.items()):
        matrix = _read_matrix_to_report(found.get("interference"))
        if matrix:
            panels.append(Panel(name if len(diagnoses) > 1 else "", draw_heatmap(*matrix), len(matrix[0])))
    note = "Energy of the update of the task on the left on inputs of the task below, as a share of the base model's."
    return Plot("interference", "Interference matrix", note, panels) if panels else None


def _read_matrix_to_report(found: Any) -> tuple[list[str], list[list[float]]] | None:
    """Tasks and values; nothing where the file holds no matrix of numbers."""
    if not isinstance(found, Mapping) or not found:
        return None
    tasks = [str(task) for task in found]
    try:
        return tasks, [[float(found[row][column]) for column in tasks] for row in tasks]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
