"""Read ``scores.json`` and ``sweep.json``, and check them by their schema.

Every value that is used is checked; the error for a wrong one names the file and the key.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.scores import ScoredMerge, TaskScore, TaskScores
from osrm_cli.storage.input_files import read_bytes
from osrm_cli.storage.record_schema import describe_error

T = TypeVar("T")
Values = tuple[FiniteFloat, ...]


def _check_score_numbers(value: Any) -> Any:
    """Refuse what JSON cannot hold, wherever it is inside a value."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a number")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_score_numbers(part)
    return value


def _check_score_file_lambda(options: dict[str, Any]) -> dict[str, Any]:
    scale = options.get("lambda")
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if scale is not None and not (is_number and abs(scale) < _MAX_LAMBDA):
        raise ValueError("lambda is not a number")
    return options


Settings = Annotated[dict[str, Any], AfterValidator(_check_score_numbers)]
Options = Annotated[Settings, AfterValidator(_check_score_file_lambda)]
Count = Annotated[int, Field(ge=0)]

_WRITERS = ("eval", "sweep")
_MAX_LAMBDA = 1e15


@dataclass(frozen=True)
class AdapterRecord:
    """Origin of an adapter, as far as its files record it.

    Attributes:
        path: Its folder.
        sha256: Its digest.
        start: Settings of its initialization.
        train: Settings of its training.
        retrofit: Settings of its retrofit.
        drift: Distance by which training moved A, relative to its norm.
    """

    path: str
    sha256: str = ""
    start: Settings | None = None
    train: Settings | None = None
    retrofit: Settings | None = None
    drift: FiniteFloat | None = None


@dataclass(frozen=True)
class ScoreFile:
    """Contents of one file of scores.

    Attributes:
        name: Its path.
        sha256: Its digest.
        split: The test examples: a split, or a half of one.
        dtype: Precision of the models.
        adapters: By task.
        single: Scores of the single adapters on the test examples; empty if none were measured.
        merges: One for ``eval``, unless a single adapter was scored; one for each point of a sweep.
        single_validation: Scores of the single adapters on the validation examples; empty outside a sweep.
        arm: Label that the user has given to the adapters.
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
class _ScoreFileSplit:
    tasks: Annotated[dict[str, _TaskRow], Field(min_length=1)]
    predictions: dict[str, Values] = field(default_factory=dict)
    per_example: dict[str, dict[str, Values]] = field(default_factory=dict)

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
                per_example=self.per_example.get(task, {}),
            )
            for task, row in sorted(self.tasks.items())
        }


@dataclass(frozen=True)
class _Splits:
    validation: _ScoreFileSplit
    test: _ScoreFileSplit


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
class EvalSchema(_ScoreFileSplit):
    """What is read of a ``scores.json``."""

    settings: _Settings = field(kw_only=True)
    adapters: Annotated[dict[str, AdapterRecord], Field(min_length=1)] = field(kw_only=True)
    method: str | None = field(kw_only=True)
    options: Options | None = field(kw_only=True)
    calibrated: bool = field(kw_only=True)
    labels: dict[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepSchema:
    """What is read of a ``sweep.json``."""

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
        OsrmError: If it is missing, is another kind of file, or contains a wrong value.
    """
    return parse_score_file(path.as_posix(), *read_scored_record(path, _WRITERS))


def read_scored_record(path: Path, commands: tuple[str, ...] = _WRITERS) -> tuple[dict[str, Any], bytes]:
    """The JSON object that one of the commands wrote, and the file's bytes.

    Raises:
        OsrmError: If the file is missing, is not a JSON object, or was written by another command.
    """
    expected = " or ".join(f"'osrm {command}'" for command in commands)
    if not path.exists():
        raise OsrmError(f"{path} is missing", f"make it with {expected}")
    content = read_bytes(path)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise OsrmError(f"{path} cannot be read: {error}", f"expected JSON of {expected}") from None
    command = record.get("command") if isinstance(record, dict) else None
    if command not in commands:
        reason = (
            f"'osrm {command}' wrote it" if isinstance(command, str) else "it does not record which command wrote it"
        )
        raise OsrmError(f"{path} is not a file of scores: {reason}", f"give a file of {expected}")
    return record, content


def parse_score_file(name: str, record: Mapping[str, Any], content: bytes) -> ScoreFile:
    """Check the bytes of a file of scores, whose JSON is ``record``.

    Args:
        name: The file's path, for errors.
        record: From ``read_scored_record``.
        content: From ``read_scored_record``.

    Raises:
        OsrmError: If it contains a wrong value.
    """
    digest = hashlib.sha256(content).hexdigest()
    if record["command"] == "sweep":
        return _score_file_from_sweep(name, digest, _validate_score_file(name, SweepSchema, content, "sweep"))
    return _score_file_from_eval(name, digest, _validate_score_file(name, EvalSchema, content, "eval"))


def _validate_score_file(name: str, schema: type[T], content: bytes, command: str) -> T:
    try:
        return TypeAdapter(schema).validate_json(content, strict=True)
    except ValidationError as error:
        raise _score_file_error(name, describe_error(error), command) from None


def _score_file_error(name: str, reason: str, command: str) -> OsrmError:
    return OsrmError(
        f"{name} cannot be read: {reason}", f"recreate it with 'osrm {command}' of this version and --overwrite"
    )


def _score_file_from_eval(name: str, digest: str, contents: EvalSchema) -> ScoreFile:
    scores = contents.scores({}, contents.labels)
    single = {
        task: replace(scores[task], headline=row.single, predictions=(), per_example={})
        for task, row in sorted(contents.tasks.items())
        if row.single is not None
    }
    merges = (
        (ScoredMerge(contents.method, contents.options or {}, contents.calibrated, scores),) if contents.method else ()
    )
    settings, adapters = contents.settings, dict(sorted(contents.adapters.items()))
    return ScoreFile(name, digest, settings.split, settings.dtype, adapters, single, merges)


def _score_file_from_sweep(name: str, digest: str, contents: SweepSchema) -> ScoreFile:
    settings, best = contents.settings, {row.point for row in contents.best}
    half_suffix = f" (half of it, by seed {settings.seed})" if settings.validation_split is None else ""
    tasks = set(contents.single.test.tasks)
    if missing := sorted(task for task in tasks if task not in contents.data):
        raise _score_file_error(name, f"data: the digest of {missing[0]} is missing", "sweep")
    if missing := sorted(task for task, data in contents.data.items() if settings.split not in data.sha256):
        raise _score_file_error(name, f"data.{missing[0]}.sha256: the digest of '{settings.split}' is missing", "sweep")
    digests = {task: data.sha256[settings.split] + half_suffix for task, data in contents.data.items()}
    if best and max(best) >= len(contents.points):
        raise _score_file_error(name, f"best: there is no point {max(best)}", "sweep")
    labels, merges = contents.labels.get("test", {}), []
    for index, point in enumerate(contents.points):
        for key, split in (("validation", point.validation), ("test", point.test)):
            if set(split.tasks) != tasks:
                raise _score_file_error(name, f"points.{index}.{key}: its tasks are not those of 'single'", "sweep")
        test, validation = point.test.scores(digests, labels), point.validation.scores({}, {})
        merges.append(ScoredMerge(point.method, point.options, point.calibrated, test, validation, index in best))
    return ScoreFile(
        name,
        digest,
        settings.split + half_suffix,
        settings.dtype,
        dict(sorted(contents.adapters.items())),
        contents.single.test.scores(digests, labels),
        tuple(merges),
        contents.single.validation.scores({}, {}),
    )
