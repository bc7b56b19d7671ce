"""The pictures of a report, each drawn only where the files hold what it needs."""

from collections.abc import Callable, Iterator

from osrm_cli.plotting.figure import Picture
from osrm_cli.reporting import curves
from osrm_cli.reporting import plots as bars
from osrm_cli.reporting.comparison import Comparison
from osrm_cli.reporting.matrix import interference

Maker = Callable[[Comparison], Picture | None]


def pictures(comparison: Comparison) -> tuple[list[Picture], list[str]]:
    """Every picture that can be drawn, and for the others what they need."""
    made = [(make(comparison), needs) for make, needs in _makers()]
    return [picture for picture, _ in made if picture], [needs for picture, needs in made if not picture]


def _makers() -> Iterator[tuple[Maker, str]]:
    yield bars.gains(single=False), "gain over the baseline (a baseline arm and another one)"
    yield curves.robustness, "robustness to lambda (one method at two values of lambda)"
    yield curves.number_of_tasks, "number of tasks (files that merge fewer of the tasks)"
    for key, (name, *_) in curves.SETTINGS.items():
        yield curves.setting(key), f"{name} (arms that differ in it alone)"
    yield bars.gains(single=True), "single-task gap (single scores of a baseline arm and another one)"
    yield bars.drift, "drift of A (adapters of 'osrm train')"
    yield interference, "interference matrix (diagnosis.json of 'osrm diagnose')"
