"""The one reader of ``scores.json`` and ``sweep.json``, and their schema.

Every value that is used is checked here: a wrong one is refused in a line that names the file and the key.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.scores import ScoredMerge, TaskScore, TaskScores

T = TypeVar("T")
Values = tuple[FiniteFloat, ...]


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    scale = options.get("lambda")
    if scale is not None and (
        isinstance(scale, bool) or not isinstance(scale, int | float) or not -1e300 < scale < 1e300
    ):
        raise ValueError("lambda is not a number")
    return options


Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
Count = Annotated[int, Field(ge=0)]

_WRITERS = ("eval", "sweep")


@dataclass(frozen=True)
class AdapterRecord:
    """How an adapter was made, as far as its files say.

    Attributes:
        path: Where it lay.
        sha256: Its digest.
        start: Settings of its initialization.
        train: Settings of its training.
        retrofit: Settings of its repair.
        drift: How far training moved A, as a share of its norm.
    """

    path: str
    sha256: str = ""
    start: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    retrofit: dict[str, Any] | None = None
    drift: FiniteFloat | None = None


@dataclass(frozen=True)
class ScoreFile:
    """What one file of scores holds.

    Attributes:
        name: How it is called: its path.
        sha256: Its digest.
        split: The examples that report: a split, or a half of one.
        dtype: The precision in which the models ran.
        adapters: By task.
        single: Scores of the single adapters on the examples that report; empty where none were measured.
        merges: One of ``eval``, unless a single adapter was scored; one for each point of a sweep.
        single_validation: Scores of the single adapters on the examples that choose; empty outside a sweep.
        arm: Who made the adapters, where the user has named them.
    """

    name: str
    sha256: str
    split: str
    dtype: str
    adapters: Mapping[str, AdapterRecord]
    single: TaskScores
    merges: tuple[ScoredMerge, ...]
    single_validation: TaskScores = field(default_factory=dict)
    arm: str | None = None


@dataclass(frozen=True)
class _TaskRow:
    metrics: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    headline: FiniteFloat
    examples: Count
    single: FiniteFloat | None = None
    sha256: str = ""


@dataclass(frozen=True)
class _Split:
    tasks: Annotated[dict[str, _TaskRow], Field(min_length=1)]
    predictions: dict[str, Values] = field(default_factory=dict)

    def scores(self, digests: Mapping[str, str], labels: Mapping[str, Values]) -> TaskScores:
        return {
            task: TaskScore(
                row.metrics,
                row.headline,
                None,
                row.examples,
                digests.get(task, row.sha256),
                self.predictions.get(task, ()),
                labels.get(task, ()),
            )
            for task, row in sorted(self.tasks.items())
        }


@dataclass(frozen=True)
class _Splits:
    validation: _Split
    test: _Split


@dataclass(frozen=True)
class _Point(_Splits):
    method: str
    options: Options
    calibrated: bool


@dataclass(frozen=True)
class _Best:
    point: Count


@dataclass(frozen=True)
class _Settings:
    split: str
    dtype: str = "float32"
    validation_split: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Data:
    sha256: dict[str, str]


@dataclass(frozen=True)
class _ScoresJson(_Split):
    settings: _Settings = field(kw_only=True)
    adapters: Annotated[dict[str, AdapterRecord], Field(min_length=1)] = field(kw_only=True)
    method: str | None = field(kw_only=True)
    options: Options | None = field(kw_only=True)
    calibrated: bool = field(kw_only=True)
    labels: dict[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class _SweepJson:
    settings: _Settings
    adapters: Annotated[dict[str, AdapterRecord], Field(min_length=1)]
    data: dict[str, _Data]
    single: _Splits
    points: Annotated[tuple[_Point, ...], Field(min_length=1)]
    best: tuple[_Best, ...]
    labels: dict[str, dict[str, Values]] = field(default_factory=dict)


def read_score_file(path: Path) -> ScoreFile:
    """Read a ``scores.json`` of ``osrm eval`` or a ``sweep.json`` of ``osrm sweep``.

    Raises:
        OsrmError: If it is missing, is something else, or holds a wrong value.
    """
    return parse_score_file(path.as_posix(), *read_record(path, _WRITERS))


def read_record(path: Path, commands: tuple[str, ...] = _WRITERS) -> tuple[dict[str, Any], bytes]:
    """The JSON object that one of the commands wrote, and the file's bytes.

    Raises:
        OsrmError: If the file is missing, is no JSON object, or was written by another command.
    """
    wanted = " or ".join(f"'osrm {command}'" for command in commands)
    try:
        content = path.read_bytes()
        record = json.loads(content)
    except FileNotFoundError:
        raise OsrmError(f"{path} is missing", f"make it with {wanted}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", f"expected JSON of {wanted}") from None
    command = record.get("command") if isinstance(record, dict) else None
    if command not in commands:
        found = f"'osrm {command}' wrote it" if isinstance(command, str) else "it does not say which command wrote it"
        raise OsrmError(f"{path} is not a file of scores: {found}", f"give a file of {wanted}")
    return record, content


def parse_score_file(name: str, record: Mapping[str, Any], content: bytes) -> ScoreFile:
    """Check the bytes of a file of scores, whose JSON is ``record``.

    Args:
        name: How the file is called, in errors too.
        record: What ``read_record`` returns.
        content: Likewise.

    Raises:
        OsrmError: If it holds a wrong value.
    """
    digest = hashlib.sha256(content).hexdigest()
    if record["command"] == "sweep":
        return _from_sweep(name, digest, _checked(name, _SweepJson, content, "sweep"))
    return _from_eval(name, digest, _checked(name, _ScoresJson, content, "eval"))


def _checked(name: str, schema: type[T], content: bytes, command: str) -> T:
    try:
        return TypeAdapter(schema).validate_json(content, strict=True)
    except ValidationError as error:
        raise _refusal(name, describe_error(error), command) from None


def describe_error(error: ValidationError) -> str:
    """The first wrong value: its key and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}" if key else str(first["msg"])


def _refusal(name: str, why: str, command: str) -> OsrmError:
    return OsrmError(
        f"{name} cannot be read: {why}", f"make it anew with 'osrm {command}' of this version and --overwrite"
    )


def _from_eval(name: str, digest: str, found: _ScoresJson) -> ScoreFile:
    scores = found.scores({}, found.labels)
    single = {
        task: replace(scores[task], headline=row.single, predictions=())
        for task, row in sorted(found.tasks.items())
        if row.single is not None
    }
    merges = (ScoredMerge(found.method, found.options or {}, found.calibrated, scores),) if found.method else ()
    settings, adapters = found.settings, dict(sorted(found.adapters.items()))
    return ScoreFile(name, digest, settings.split, settings.dtype, adapters, single, merges)


def _from_sweep(name: str, digest: str, found: _SweepJson) -> ScoreFile:
    settings, best = found.settings, {row.point for row in found.best}
    half = f" (half of it, by seed {settings.seed})" if settings.validation_split is None else ""
    tasks = set(found.single.test.tasks)
    if missing := sorted(task for task in tasks if task not in found.data):
        raise _refusal(name, f"data: the digest of {missing[0]} is missing", "sweep")
    if missing := sorted(task for task, data in found.data.items() if settings.split not in data.sha256):
        raise _refusal(name, f"data.{missing[0]}.sha256: the digest of '{settings.split}' is missing", "sweep")
    digests = {task: data.sha256[settings.split] + half for task, data in found.data.items()}
    if best and max(best) >= len(found.points):
        raise _refusal(name, f"best: there is no point {max(best)}", "sweep")
    labels, merges = found.labels.get("test", {}), []
    for index, point in enumerate(found.points):
        for key, split in (("validation", point.validation), ("test", point.test)):
            if set(split.tasks) != tasks:
                raise _refusal(name, f"points.{index}.{key}: its tasks are not those of 'single'", "sweep")
        test, validation = point.test.scores(digests, labels), point.validation.scores({}, {})
        merges.append(ScoredMerge(point.method, point.options, point.calibrated, test, validation, index in best))
    return ScoreFile(
        name,
        digest,
        settings.split + half,
        settings.dtype,
        dict(sorted(found.adapters.items())),
        found.single.test.scores(digests, labels),
        tuple(merges),
        found.single.validation.scores({}, {}),
    )
