"""Arms of a comparison: adapters made alike but for their seeds, and the shortest names that tell them apart."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import AdapterRecord, ScoreFile
from osrm_cli.initialization.objectives.table import OBJECTIVES

Settings = Mapping[str, Any]

# No part of what an adapter is: repetitions differ in the seed, and dev examples only judge.
_NO_SETTINGS = {"seed", "dev_limit"}
_REPAIR = "retrofit method"
# The usual value of these is that of the arms which agree in the other.
_WITHIN = {
    "statistic": "objective",
    "eps": "objective",
    "penalty_unit": "interference_penalty",
    "retrofit mu": _REPAIR,
    "retrofit objective": _REPAIR,
    "retrofit eps": _REPAIR,
}
_UNTOLD = {"target_modules"}  # starts have not always told them
_PLAIN = ("kaiming", "gaussian")  # PEFT's starts come first
_OBJECTIVES = [*_PLAIN, *(row.name for row in OBJECTIVES if row.name not in _PLAIN)]

# How a name tells a setting; any other is ", key value".
_TOLD: dict[str, Callable[[Any], str]] = {
    "statistic": lambda value: f" ({value})",
    "a_scale": lambda value: f" × {value} norm",
    "interference_penalty": lambda value: f" + penalty {_text(value)}",
    "penalty_unit": lambda value: f" of {value} energy",
    "head": lambda value: f", {value} head",
    "freeze": lambda value: f" + frozen {value}",
    _REPAIR: lambda value: f" + retrofit ({value})",
    "rank": lambda value: f", rank {value}",
    "target_modules": lambda value: f", {'/'.join(value) if isinstance(value, tuple) else value}",
    "examples": lambda value: f", k {value}",
}


@dataclass(frozen=True)
class Arm:
    """Adapters made alike, seeds apart.

    Attributes:
        settings: By task, then by name; what is absent or null is left out.
        label: Its name in the report.
    """

    settings: Mapping[str, Settings]
    label: str = ""

    @property
    def objective(self) -> str:
        """How its A was chosen."""
        found = self.value("objective")
        return "other start" if found is None else "mixed starts" if isinstance(found, Mixed) else str(found)

    def value(self, key: str) -> Any:
        """A setting: one value, or ``Mixed`` where the tasks differ."""
        values = {task: settings.get(key) for task, settings in self.settings.items()}
        first = next(iter(values.values()), None)
        return first if all(value == first for value in values.values()) else Mixed(tuple(values.items()))

    def accepts(self, other: Mapping[str, Settings], told: bool = True) -> bool:
        """Whether adapters of these settings belong to it: they share a task, and agree on all they share.

        Unless ``told``, what was not always told may be told of one of them alone.
        """
        shared = set(self.settings) & set(other)
        return bool(shared) and all(_agree(self.settings[task], other[task], told) for task in shared)


def _agree(one: Settings, other: Settings, told: bool) -> bool:
    free = set() if told else {key for key in _UNTOLD if (key in one) != (key in other)}
    return all(one.get(key) == other.get(key) for key in {*one, *other} - free)


@dataclass(frozen=True)
class Mixed:
    """A setting that differs between the tasks of one arm.

    Attributes:
        values: Pairs of task and value.
    """

    values: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        """Values, each with its tasks."""
        by_value: dict[Any, list[str]] = {}
        for task, value in self.values:
            by_value.setdefault(value, []).append(task)
        return ", ".join(f"{_text(value)} ({', '.join(tasks)})" for value, tasks in by_value.items())


def settings(adapter: AdapterRecord) -> dict[str, Any]:
    """How an adapter was made: its start, its training, and its repair if it had one, in one mapping.

    Of an adapter of another program, the folder that it lies in is all that tells it from others.
    """
    start, train, repair = adapter.start or {}, adapter.train or {}, adapter.retrofit or {}
    if train:  # what does not say how its head began was trained from a fresh one, when there was nothing else
        train = {"head": "fresh", **train}
    repair = {f"retrofit {key}": value for key, value in repair.items() if key not in ("seed", "max_length")}
    place = {} if start or train else {"from": PurePosixPath(adapter.path).parent.name}
    known = {**start, **train, **repair, **place}
    return {key: _frozen(value) for key, value in known.items() if value is not None and key not in _NO_SETTINGS}


def seeds(file: ScoreFile) -> str:
    """The repetition that a file is: the seed of training, and the start's where it is another."""
    starts, trainings = (_seeds(file, part) for part in ("start", "train"))
    return trainings if starts in ("", trainings) else f"{trainings}/{starts}" if trainings else starts


def _seeds(file: ScoreFile, part: str) -> str:
    given = [(getattr(adapter, part) or {}).get("seed") for adapter in file.adapters.values()]
    return "+".join(map(str, sorted({seed for seed in given if seed is not None})))


def group(files: Sequence[ScoreFile]) -> tuple[tuple[Arm, ...], Mapping[str, int]]:
    """The arms in the order of the report, and the index of each file's.

    A file of fewer tasks belongs to the arm that it agrees with on them, one that does not tell what others tell to the
    only arm that is otherwise alike.
    """
    arms: list[Arm] = []
    members: list[list[str]] = []
    made = {file.name: {task: settings(adapter) for task, adapter in file.adapters.items()} for file in files}
    for name, own in sorted(
        made.items(), key=lambda item: (-len(item[1]), not all(map(_UNTOLD.issubset, item[1].values())), item[0])
    ):
        alike, perhaps = ([i for i, arm in enumerate(arms) if arm.accepts(own, told)] for told in (True, False))
        if alike or len(perhaps) == 1:
            place = (alike or perhaps)[0]
            arms[place] = Arm({task: {**own.get(task, {}), **known} for task, known in arms[place].settings.items()})
            members[place].append(name)
        else:
            arms.append(Arm(own))
            members.append([name])
    order = sorted(range(len(arms)), key=lambda index: _order(arms[index]))
    named = label([arms[index] for index in order])
    return named, {name: place for place, index in enumerate(order) for name in members[index]}


def _order(arm: Arm) -> tuple[Any, ...]:
    objective = arm.objective
    place = _OBJECTIVES.index(objective) if objective in _OBJECTIVES else len(_OBJECTIVES)
    told = [(key, _sortable(arm.value(key))) for key in keys([arm])]
    return place, objective, len(told), told


def keys(arms: Iterable[Arm]) -> list[str]:
    """Names of all settings, those that names tell first."""
    found = {key for arm in arms for own in arm.settings.values() for key in own} - {"objective"}
    return [*(key for key in _TOLD if key in found), *sorted(found - set(_TOLD))]


def differing(arms: Sequence[Arm]) -> list[str]:
    """Settings that are not the same in all arms, as far as they are told."""
    return [key for key in keys(arms) if len({arm.value(key) for arm in arms} - _unknown(key)) > 1]


def _unknown(key: str) -> set[Any]:
    return {None} if key in _UNTOLD else set()


def label(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Name each arm by its objective and by what is unusual among these arms.

    A setting that some arms do without is told of the others. Otherwise the usual value is the most frequent one; the
    earlier arm's where two are equally frequent.
    """
    told = differing(arms)
    labels = [arm.objective + "".join(_told(key, arm, arms) for key in told) for arm in arms]
    count = Counter(labels)
    running: dict[str, itertools.count[int]] = {name: itertools.count(1) for name in count}
    unique = [f"{name} [{next(running[name])}]" if count[name] > 1 else name for name in labels]
    return tuple(replace(arm, label=name) for arm, name in zip(arms, unique, strict=True))


def _told(key: str, arm: Arm, arms: Sequence[Arm]) -> str:
    value = arm.value(key)
    if value in (_usual(key, arm, arms), *_unknown(key)):
        return ""
    if isinstance(value, Mixed):
        return f", mixed {_words(key)}"
    return _TOLD[key](value) if key in _TOLD else f", {_words(key)} {_text(value)}"


def _usual(key: str, arm: Arm, arms: Sequence[Arm]) -> Any:
    peers = arms
    if key in _WITHIN:
        peers = [other for other in arms if other.value(_WITHIN[key]) == arm.value(_WITHIN[key])]
    values = [value for other in peers if (value := other.value(key)) not in _unknown(key)] or [None]
    if None in values and key != "limit":  # no limit is a choice like any other
        return None
    if key == "statistic":  # the objective's own first choice, where an arm has it
        first = next((kind for row in OBJECTIVES if row.name == arm.objective for kind in row.statistics), None)
        if first in values:
            return first
    return max(values, key=values.count)


def find(arms: Sequence[Arm], wanted: str | None) -> int | None:
    """The baseline: the arm of this name, else the plainest of this objective; ``kaiming`` if none is asked for.

    Raises:
        OsrmError: If it is asked for and not there.
    """
    name = wanted or _PLAIN[0]
    by_label = [index for index, arm in enumerate(arms) if arm.label == name]
    by_objective = [index for index, arm in enumerate(arms) if arm.objective == name]
    found = by_label or sorted(by_objective, key=lambda index: (len(arms[index].label), index))
    if not found and wanted:
        raise OsrmError(f"there is no arm '{wanted}'", f"the arms are: {'; '.join(arm.label for arm in arms)}")
    return found[0] if found else None


def text(value: Any) -> str:
    """A setting's value, for people."""
    return "-" if value is None else str(value) if isinstance(value, Mixed) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else "all" if value is None else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return tuple((key, _frozen(part)) for key, part in sorted(value.items())) if isinstance(value, dict) else value


def _sortable(value: Any) -> tuple[str, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ if not number else "", float(value) if number else 0.0, str(value)
