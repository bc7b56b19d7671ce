"""The pictures of a report, each drawn only where the files hold what it needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from osrm_cli.plotting.figure import Panel, Picture
from osrm_cli.plotting.heatmap import heat
from osrm_cli.reporting import curves
from osrm_cli.reporting.arms import seeds
from osrm_cli.reporting.comparison import Comparison, Row, mean

Maker = Callable[[Comparison], Picture | None]


def pictures(comparison: Comparison) -> tuple[list[Picture], list[str]]:
    """Every picture that can be drawn, and for the others what they need."""
    made = [(make(comparison), needs) for make, needs in _makers()]
    return [picture for picture, _ in made if picture], [needs for picture, needs in made if not picture]


def _makers() -> Iterator[tuple[Maker, str]]:
    yield gains(single=False), "gain over the baseline (a baseline arm and another one)"
    yield curves.robustness, "robustness to lambda (one method at two values of lambda)"
    yield curves.number_of_tasks, "number of tasks (files that merge fewer of the tasks)"
    for key, (name, *_) in curves.SETTINGS.items():
        yield curves.setting(key), f"{name} (arms that differ in it alone)"
    yield gains(single=True), "single-task gap (single scores of a baseline arm and another one)"
    yield drift, "drift of A (adapters of 'osrm train')"
    yield interference, "interference matrix (diagnosis.json of 'osrm diagnose')"


def drift(comparison: Comparison) -> Picture | None:
    """How far training moved each arm's A."""
    found: dict[int, dict[str, dict[str, float]]] = {}  # by arm, task and seed
    study = comparison.study
    for file in filter(study.all_tasks, study.files):
        for task, adapter in file.adapters.items():
            if adapter.drift is not None:
                by_seed = found.setdefault(study.arm_of[file.name], {}).setdefault(task, {})
                by_seed[seeds(file)] = 100 * adapter.drift
    if not found:
        return None

    def draw(axes: Axes) -> None:
        for place, (arm, by_task) in enumerate(sorted(found.items())):
            values = [mean(by_seed.values()) or 0.0 for by_seed in by_task.values()]
            axes.barh(place, mean(values) or 0.0, color=comparison.look(arm)["color"], alpha=0.45, height=0.6)
            axes.plot(values, [place] * len(values), "o", color=comparison.look(arm)["color"], markersize=3.5)
        _named(axes, [comparison.study.arms[arm].label for arm in sorted(found)])
        axes.set_xlabel("drift of A, % of its norm")

    note = "How far training moved A from its start, up to a rotation: the mean of the tasks, and a dot for each task."
    return Picture("drift", "Drift of A", note, [Panel("", draw, len(found))])


def gains(single: bool) -> Callable[[Comparison], Picture | None]:
    """Differences from the baseline with their intervals: of single adapters, or of merged models."""

    def make(comparison: Comparison) -> Picture | None:
        by_kind: dict[str, list[Row]] = {}
        for row in comparison.rows:
            if row.difference and bool(row.kind.method) is not single:
                by_kind.setdefault(row.kind.label, []).append(row)
        if not by_kind or comparison.baseline is None:
            return None
        against = comparison.study.arms[comparison.baseline].label
        panels = [
            Panel("" if single else kind, _forest(comparison, rows, against), len(rows))
            for kind, rows in by_kind.items()
        ]
        what = "of single adapters" if single else "of the merged model"
        title = "Single-task gap" if single else f"Gain over {against}"
        note = f"Difference {what} from {against}, averaged over the tasks; bars are 95% intervals."
        return Picture("single-gap" if single else "gain", title, note, panels)

    return make


def _forest(comparison: Comparison, rows: Sequence[Row], against: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            found = row.difference
            if found is None:
                continue
            look = {**comparison.look(row.arm), "linestyle": "none"}
            axes.plot(found.mean, place, **look)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=look["color"], linewidth=2)
        axes.axvline(0, color="#808080", linewidth=1)
        _named(axes, [comparison.study.arms[row.arm].label for row in rows])
        axes.set_xlabel(f"points above {against}")

    return draw


def _named(axes: Axes, names: Sequence[str]) -> None:
    """Names down the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")


def interference(comparison: Comparison) -> Picture | None:
    """A heat map for each diagnosis that holds a matrix."""
    panels = []
    for name, facts in sorted(comparison.diagnoses.items()):
        found = _matrix(facts.get("interference"))
        if found:
            panels.append(Panel(name if len(comparison.diagnoses) > 1 else "", heat(*found)))
    note = "Energy of the update of the task on the left on inputs of the task below, as a share of the base model's."
    return Picture("interference", "Interference matrix", note, panels) if panels else None


def _matrix(found: Any) -> tuple[list[str], list[list[float]]] | None:
    """Tasks and values; nothing where the file holds no matrix of numbers."""
    if not isinstance(found, Mapping):
        return None
    tasks = [str(task) for task in found]
    try:
        return tasks, [[float(found[row][column]) for column in tasks] for row in tasks]
    except (KeyError, TypeError, ValueError):
        return None
