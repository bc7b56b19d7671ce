"""What ``osrm report`` reads: files of ``osrm eval`` and ``osrm sweep``, in one form."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osrm_cli.errors import OsrmError
from osrm_cli.storage import provenance
from osrm_cli.tasks.metrics import METRICS

Array = NDArray[Any]

READ = ("scores.json", "sweep.json", "diagnosis.json")


@dataclass(frozen=True)
class Scored:
    """One task's score.

    Attributes:
        headline: In percent.
        metrics: Names of those whose mean is the headline.
        examples: Number of examples.
        sha256: What tells the examples from others: their digest, and which half of them was scored.
        predictions: Class indices or scores, where the file gives them; shape ``(examples,)``.
    """

    headline: float
    metrics: tuple[str, ...]
    examples: int
    sha256: str
    predictions: Array | None


Scores = Mapping[str, Scored]


@dataclass(frozen=True)
class Merge:
    """One way of merging, scored.

    Attributes:
        method: Such as ``task-arith``.
        options: Such as ``{"lambda": 0.3}``.
        calibrated: Whether ``osrm calibrate`` went over the heads.
        tasks: The scores to report.
        validation: Average on the split that a choice was made on; none outside a sweep.
        chosen: Whether it is the sweep's choice for this method.
    """

    method: str
    options: Mapping[str, Any]
    calibrated: bool
    tasks: Scores
    validation: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        name: Its path below the folder that all files share.
        sha256: Its digest.
        split: What the reported scores were measured on.
        adapters: By task: how the adapter was made.
        single: The single adapters' scores; empty where none were measured.
        merges: One for a scores file, one for each point of a sweep.
        labels: By task, where the file gives them.
        dtype: The precision in which the models ran.
    """

    name: str
    sha256: str
    split: str
    adapters: Mapping[str, Mapping[str, Any]]
    single: Scores
    merges: tuple[Merge, ...]
    labels: Mapping[str, Array]
    dtype: str

    @property
    def scope(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tasks that were scored, and those that were merged: more, where only some were scored."""
        scored = set(self.single).union(*(merge.tasks for merge in self.merges))
        return tuple(sorted(scored)), tuple(sorted(self.adapters))


@dataclass(frozen=True)
class Given:
    """Everything that was given.

    Attributes:
        files: Scores, in the order of their names.
        diagnoses: By name: what ``osrm diagnose`` wrote.
    """

    files: tuple[File, ...]
    diagnoses: Mapping[str, Mapping[str, Any]]


def read(paths: Sequence[Path]) -> Given:
    """Read files, and the results in folders.

    Raises:
        OsrmError: If one is missing, damaged or something else.
    """
    found = sorted({path.resolve(): path for given in paths for path in _files(given)}.items())
    root = Path(*_shared([path.parent.parts for path, _ in found]))
    files, diagnoses = [], {}
    for path, given in found:
        name, facts = path.relative_to(root).as_posix(), _facts(given)
        if facts["command"] == "diagnose":
            diagnoses[name] = {**facts, "sha256": provenance.sha256(path)}
            continue
        try:
            files.append(_scores(name, provenance.sha256(path), facts))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            again = "osrm sweep" if facts["command"] == "sweep" else "osrm eval"
            raise OsrmError(
                f"{given} cannot be read: {error!r}", f"make it anew with '{again}' of this version and --overwrite"
            ) from None
    if not files:
        raise OsrmError("no scores were given, only diagnoses", "add scores.json of 'osrm eval'")
    return Given(tuple(files), diagnoses)


def _files(given: Path) -> Iterator[Path]:
    if not given.is_dir():
        yield given
        return
    inside = [path for name in READ for path in given.rglob(name)]
    inside = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(given).parts)]
    if not inside:
        raise OsrmError(f"{given} holds no {', '.join(READ[:2])} or {READ[2]}", "make one: osrm eval merged")
    yield from inside


def _shared(folders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts with which all paths begin."""
    return tuple(level[0] for level in _while_equal(zip(*folders, strict=False)))


def _while_equal(levels: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    for level in levels:
        if len(set(level)) > 1:
            return
        yield level


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OsrmError(f"{path} is missing", "make it with 'osrm eval' or 'osrm sweep'") from None
    except (OSError, ValueError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", "expected JSON of 'osrm eval' or 'osrm sweep'") from None
    command = facts.get("command") if isinstance(facts, dict) else None
    if command not in ("eval", "sweep", "diagnose"):
        raise OsrmError(
            f"{path} is no file of scores: " + (f"'osrm {command}' wrote it" if command else "it does not say so"),
            "give scores.json of 'osrm eval' or sweep.json of 'osrm sweep'",
        )
    if command != "diagnose" and not isinstance(facts.get("adapters"), dict):
        raise OsrmError(f"{path} does not say how its adapters were made", "score again with this version: --overwrite")
    return dict(facts)


def _scores(name: str, sha256: str, facts: Mapping[str, Any]) -> File:
    made = {task: dict(about) for task, about in sorted(facts["adapters"].items())}
    if facts["command"] == "eval":
        return _eval(name, sha256, made, facts)
    best, split = {row["point"] for row in facts["best"]}, facts["settings"]["split"]
    halved = _split(facts) if _split(facts) != split else ""
    examples = {task: about["sha256"][split] + halved for task, about in facts["data"].items()}
    merges = tuple(
        Merge(
            point["method"],
            point["options"],
            point["calibrated"],
            _tasks(point["test"], examples),
            point["validation"]["average"],
            index in best,
        )
        for index, point in enumerate(facts["points"])
    )
    single = _tasks(facts["single"]["test"], examples)
    labels = _labels((facts.get("labels") or {}).get("test"))
    return File(name, sha256, _split(facts), made, single, merges, labels, _dtype(facts))


def _split(facts: Mapping[str, Any]) -> str:
    """What a sweep reports on: a split, or the half of one that a seed decides."""
    settings = facts["settings"]
    halved = settings["validation_split"] is None
    return f"{settings['split']} (half of it, by seed {settings['seed']})" if halved else str(settings["split"])


def _dtype(facts: Mapping[str, Any]) -> str:
    return str(facts["settings"].get("dtype", "float32"))


def _eval(name: str, sha256: str, made: Mapping[str, Any], facts: Mapping[str, Any]) -> File:
    merged = _tasks(facts, {task: row["sha256"] for task, row in facts["tasks"].items()})
    alone = {task: row["single"] for task, row in facts["tasks"].items() if row["single"] is not None}
    single = {
        task: Scored(float(alone[task]), score.metrics, score.examples, score.sha256, None)
        for task, score in merged.items()
        if task in alone
    }
    merges = (Merge(facts["method"], facts["options"] or {}, facts["calibrated"], merged),) if facts["method"] else ()
    split, labels = facts["settings"]["split"], _labels(facts.get("labels"))
    return File(name, sha256, split, made, single, merges, labels, _dtype(facts))


def _tasks(scores: Mapping[str, Any], examples: Mapping[str, str]) -> Scores:
    predictions = scores.get("predictions") or {}
    return {
        task: Scored(
            float(row["headline"]),
            tuple(name for name in row["metrics"] if name in METRICS),
            int(row["examples"]),
            examples[task],
            np.asarray(predictions[task]) if task in predictions else None,
        )
        for task, row in sorted(scores["tasks"].items())
    }


def _labels(found: Mapping[str, Any] | None) -> dict[str, Array]:
    return {task: np.asarray(values) for task, values in (found or {}).items()}
