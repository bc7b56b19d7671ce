"""Arms of a comparison, by who made the adapters: named by the user, or else made alike but for their seeds."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import AdapterRecord, ScoreFile
from osrm_cli.initialization.objectives.table import OBJECTIVES

Settings = Mapping[str, Any]

# Repetitions differ in the seed, and dev examples only judge: neither says what an adapter is.
_NOT_SETTINGS = {"seed", "dev_limit"}
_RETROFIT = "retrofit method"
# The usual value of these is that of the arms which agree in the other.
_COMPARED_WITHIN = {
    "statistic": "objective",
    "eps": "objective",
    "penalty_unit": "interference_penalty",
    "retrofit mu": _RETROFIT,
    "retrofit objective": _RETROFIT,
    "retrofit eps": _RETROFIT,
}
_MAY_BE_MISSING = {"target_modules"}  # initializations have not always recorded them
_PLAIN = ("kaiming", "gaussian")  # PEFT's own initializations come first
_OBJECTIVES = [*_PLAIN, *(row.name for row in OBJECTIVES if row.name not in _PLAIN)]

# How a label shows a setting; any other is ", key value".
_LABEL_FORMATS: dict[str, Callable[[Any], str]] = {
    "statistic": lambda value: f" ({value})",
    "a_scale": lambda value: f" × {value} norm",
    "interference_penalty": lambda value: f" + penalty {format_arm_value(value)}",
    "penalty_unit": lambda value: f" of {value} energy",
    "head": lambda value: f", {value} head",
    "freeze": lambda value: f" + frozen {value}",
    _RETROFIT: lambda value: f" + retrofit ({value})",
    "rank": lambda value: f", rank {value}",
    "target_modules": lambda value: f", {'/'.join(value) if isinstance(value, tuple) else value}",
    "examples": lambda value: f", k {value}",
}


@dataclass(frozen=True)
class MixedArmSetting:
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
        return ", ".join(f"{_format_arm_label_value(value)} ({', '.join(tasks)})" for value, tasks in by_value.items())


@dataclass(frozen=True)
class Arm:
    """Adapters of one maker.

    Attributes:
        label: Its name in the report.
        settings: By task, then by name; what is absent or null is left out.
        values: The same, tasks together: one value, or ``MixedArmSetting`` where they differ.
        conflicts: Names of settings in which the files of a named arm differ.
    """

    label: str
    settings: Mapping[str, Settings]
    values: Settings
    conflicts: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        """How its A was chosen."""
        value = self.values.get("objective")
        return "other start" if value is None else "mixed starts" if isinstance(value, MixedArmSetting) else str(value)


@dataclass(frozen=True)
class ArmTable:
    """The arms of all files.

    Attributes:
        arms: In the order of the report.
        arm_of: Index of a file's arm, by its name.
        seed_of: The repetition that a file is, by its name.
        differing: Settings that are not the same in all arms.
        descriptions: Of each arm its objective and the values of these, for people.
        shared: Values of all other settings, for people.
        mixtures: Of each arm the settings in which its adapters differ, with the values; empty where there are none.
    """

    arms: tuple[Arm, ...]
    arm_of: Mapping[str, int]
    seed_of: Mapping[str, str]
    differing: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    shared: Mapping[str, str]
    mixtures: tuple[str, ...]


def group_arms(files: Sequence[ScoreFile], names: Sequence[str] = ()) -> ArmTable:
    """Sort files into arms: those whose arm the user has named, in the order of ``names``, before the others.

    Of the others, a file of fewer tasks belongs to the arm that it agrees with on them, one that does not record what
    others record to the only arm that is otherwise alike.
    """
    members: list[list[ScoreFile]] = [[file for file in files if file.arm == name] for name in names]
    named = [make_arm(name, *_collect_arm_settings(group)) for name, group in zip(names, members, strict=True)]
    inferred, others = _infer_arms([file for file in files if file.arm is None])
    labels = [f"{arm.label} (unnamed)" if arm.label in names else arm.label for arm in inferred]
    arms = (*named, *(make_arm(label, arm.settings) for label, arm in zip(labels, inferred, strict=True)))
    differing = _differing_arm_settings(arms)
    return ArmTable(
        arms,
        {file.name: place for place, group in enumerate([*members, *others]) for file in group},
        {file.name: _seed_of(file) for file in files},
        tuple(differing),
        tuple(tuple(format_arm_value(arm.values.get(key)) for key in ["objective", *differing]) for arm in arms),
        {key: format_arm_value(arms[0].values.get(key)) for key in _ordered_arm_settings(arms) if key not in differing},
        tuple(map(_describe_arm_mixture, arms)),
    )


def _describe_arm_mixture(arm: Arm) -> str:
    keys = [
        key for key in ["objective", *_ordered_arm_settings([arm])] if isinstance(arm.values.get(key), MixedArmSetting)
    ]
    mixed = [f"{key.replace('_', ' ')} {arm.values[key]}" for key in keys]
    return "; ".join([*mixed, *(f"{key.replace('_', ' ')} differs between its files" for key in arm.conflicts)])


def make_arm(label: str, settings: Mapping[str, Settings], conflicts: Sequence[str] = ()) -> Arm:
    """An arm of these settings."""
    values = {}
    for key in sorted({key for own in settings.values() for key in own}):
        by_task = tuple((task, own.get(key)) for task, own in settings.items())
        first = by_task[0][1]
        values[key] = first if all(value == first for _, value in by_task) else MixedArmSetting(by_task)
    return Arm(label, settings, values, tuple(conflicts))


def read_arm_settings(adapter: AdapterRecord) -> dict[str, Any]:
    """How an adapter was made: its initialization, its training, and its repair if it had one, in one mapping.

    Of an adapter of another program, the folder that it lies in is all that tells it from others.
    """
    start, train = adapter.start or {}, adapter.train or {}
    if train:  # what does not say how its head began was trained from a fresh one, when there was nothing else
        train = {"head": "fresh", **train}
    skipped = ("seed", "max_length")
    repair = {f"retrofit {key}": value for key, value in (adapter.retrofit or {}).items() if key not in skipped}
    place = {} if start or train else {"from": PurePosixPath(adapter.path).parent.name}
    known = {**start, **train, **repair, **place}
    return {
        key: _freeze_arm_setting(value)
        for key, value in known.items()
        if value is not None and key not in _NOT_SETTINGS
    }


def _collect_arm_settings(files: Sequence[ScoreFile]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The settings of a named arm by task, those of the first file that has them, and the names of differing ones."""
    merged: dict[str, dict[str, Any]] = {}
    conflicts = set()
    for file in files:
        for task, adapter in file.adapters.items():
            own = merged.setdefault(task, {})
            for key, value in read_arm_settings(adapter).items():
                if own.setdefault(key, value) != value:
                    conflicts.add(key)
    return dict(sorted(merged.items())), sorted(conflicts)


def _infer_arms(files: Sequence[ScoreFile]) -> tuple[list[Arm], list[list[ScoreFile]]]:
    """Arms of files that are made alike, named by what tells them apart, and the files of each."""
    groups: list[tuple[dict[str, Settings], list[ScoreFile]]] = []
    made = [({task: read_arm_settings(adapter) for task, adapter in file.adapters.items()}, file) for file in files]
    for own, file in sorted(
        made, key=lambda item: (-len(item[0]), not _has_complete_arm_settings(item[0]), item[1].name)
    ):
        alike, perhaps = (
            [group for group in groups if _arm_settings_agree(group[0], own, strict)] for strict in (True, False)
        )
        if alike or len(perhaps) == 1:
            settings, members = (alike or perhaps)[0]
            settings.update({task: {**own.get(task, {}), **known} for task, known in settings.items()})
            members.append(file)
        else:
            groups.append((dict(own), [file]))
    unlabelled = sorted(
        ((make_arm("", settings), members) for settings, members in groups), key=lambda p: _arm_order(p[0])
    )
    return label_arms([arm for arm, _ in unlabelled]), [members for _, members in unlabelled]


def _has_complete_arm_settings(settings: Mapping[str, Settings]) -> bool:
    return all(map(_MAY_BE_MISSING.issubset, settings.values()))


def _arm_settings_agree(one: Mapping[str, Settings], other: Mapping[str, Settings], strict: bool) -> bool:
    """Whether both share a task, and agree on all that they share.

    Unless ``strict``, what was not always recorded may be recorded of one of them alone.
    """
    tasks = one.keys() & other.keys()
    for task in tasks:
        first, second = one[task], other[task]
        free = set() if strict else {key for key in _MAY_BE_MISSING if (key in first) != (key in second)}
        if any(first.get(key) != second.get(key) for key in {*first, *second} - free):
            return False
    return bool(tasks)


def _arm_order(arm: Arm) -> tuple[Any, ...]:
    objective = arm.objective
    place = _OBJECTIVES.index(objective) if objective in _OBJECTIVES else len(_OBJECTIVES)
    known = [(key, _arm_sort_key(arm.values.get(key))) for key in _ordered_arm_settings([arm])]
    return place, objective, len(known), known


def _seed_of(file: ScoreFile) -> str:
    """The seed of training, and the initialization's where it is another."""
    starts, trainings = (
        _join_arm_seeds(getattr(made, part) for made in file.adapters.values()) for part in ("start", "train")
    )
    return trainings if starts in ("", trainings) else f"{trainings}/{starts}" if trainings else starts


def _join_arm_seeds(settings: Iterable[Settings | None]) -> str:
    seeds = {_freeze_arm_setting((own or {}).get("seed")) for own in settings} - {None}
    return "+".join(map(str, sorted(seeds, key=_arm_sort_key)))


def _ordered_arm_settings(arms: Iterable[Arm]) -> list[str]:
    """Names of all settings but the objective, those that labels show first."""
    keys = {key for arm in arms for key in arm.values} - {"objective"}
    return [*(key for key in _LABEL_FORMATS if key in keys), *sorted(keys - set(_LABEL_FORMATS))]


def _differing_arm_settings(arms: Sequence[Arm]) -> list[str]:
    """Settings that are not the same in all arms, as far as they are recorded."""
    return [
        key
        for key in _ordered_arm_settings(arms)
        if len({arm.values.get(key) for arm in arms} - _unrecorded_arm_values(key)) > 1
    ]


def _unrecorded_arm_values(key: str) -> set[Any]:
    return {None} if key in _MAY_BE_MISSING else set()


def label_arms(arms: Sequence[Arm]) -> list[Arm]:
    """Name each arm by its objective and by what is unusual among these arms.

    A setting that some arms do without is shown of the others. Otherwise the usual value is the most frequent one; the
    earlier arm's where two are equally frequent.
    """
    shown = _differing_arm_settings(arms)
    labels = [arm.objective + "".join(_arm_label_part(key, arm, arms) for key in shown) for arm in arms]
    count = Counter(labels)
    running: dict[str, itertools.count[int]] = {name: itertools.count(1) for name in count}
    unique = [f"{name} [{next(running[name])}]" if count[name] > 1 else name for name in labels]
    return [make_arm(name, arm.settings) for arm, name in zip(arms, unique, strict=True)]


def _arm_label_part(key: str, arm: Arm, arms: Sequence[Arm]) -> str:
    value = arm.values.get(key)
    if value in (_usual_arm_value(key, arm, arms), *_unrecorded_arm_values(key)):
        return ""
    name = key.replace("_", " ")
    if isinstance(value, MixedArmSetting):
        return f", mixed {name}"
    return _LABEL_FORMATS[key](value) if key in _LABEL_FORMATS else f", {name} {_format_arm_label_value(value)}"


def _usual_arm_value(key: str, arm: Arm, arms: Sequence[Arm]) -> Any:
    within = _COMPARED_WITHIN.get(key)
    peers = [other for other in arms if within is None or other.values.get(within) == arm.values.get(within)]
    values = [value for other in peers if (value := other.values.get(key)) not in _unrecorded_arm_values(key)] or [None]
    if None in values and key != "limit":  # no limit is a choice like any other
        return None
    if key == "statistic":  # the objective's own first choice, where an arm has it
        first = next((kind for row in OBJECTIVES if row.name == arm.objective for kind in row.statistics), None)
        if first in values:
            return first
    return max(values, key=values.count)


def find_baseline_arm(arms: Sequence[Arm], wanted: str | None) -> int | None:
    """The arm of this name, else the plainest of this objective; ``kaiming`` if none is asked for.

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


def format_arm_value(value: Any) -> str:
    """A setting's value, for people."""
    if isinstance(value, tuple):
        return "/".join(map(format_arm_value, value))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _format_arm_label_value(value: Any) -> str:
    return "all" if value is None else format_arm_value(value)


def _freeze_arm_setting(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_freeze_arm_setting, value))
    return (
        tuple((key, _freeze_arm_setting(part)) for key, part in sorted(value.items()))
        if isinstance(value, dict)
        else value
    )


def _arm_sort_key(value: Any) -> tuple[str, float | int, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ if not number else "", value if number else 0.0, str(value)
