"""One compressed table of many files of scores: a row for each task of each merge, with its predictions.

A Parquet file, which pandas, DuckDB and others read too. A file's rows begin with its single adapters, whose ``point``
and ``method`` are empty; ``point`` counts its merges. Labels belong to the examples: they stand in the first row alone
that was scored on them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import AdapterRecord, ScoreFile, Values
from osrm_cli.evaluation.scores import ScoredMerge, TaskScore, TaskScores
from osrm_cli.storage import provenance
from osrm_cli.storage.record_schema import describe_error

_KEY = b"osrm"  # of the table's own record, in the file's metadata

Diagnoses = Mapping[str, Mapping[str, Any]]
Part = Literal["test", "validation"]


@dataclass(frozen=True)
class _Row:
    """The columns. A row without a headline tells only how the adapter of its task was made."""

    file: str
    file_sha256: str
    arm: str | None
    split: str
    dtype: str
    point: int | None
    method: str | None
    options: str | None
    calibrated: bool | None
    chosen: bool | None
    part: Part
    task: str
    headline: FiniteFloat | None = None
    metrics: dict[str, FiniteFloat] | None = None
    examples: Annotated[int, Field(ge=0)] | None = None
    examples_sha256: str | None = None
    predictions: Values | None = None
    labels: Values | None = None
    adapter: str | None = None
    per_example: dict[str, Values] | None = None


_TYPES = {
    **dict.fromkeys(("point", "examples"), pa.int32()),
    **dict.fromkeys(("calibrated", "chosen"), pa.bool_()),
    **dict.fromkeys(("predictions", "labels"), pa.list_(pa.float64())),
    "headline": pa.float64(),
    "metrics": pa.map_(pa.string(), pa.float64()),
    "per_example": pa.map_(pa.string(), pa.list_(pa.float64())),
}
_SCHEMA = pa.schema([(column.name, _TYPES.get(column.name, pa.string())) for column in fields(_Row)])
_OF_TEXT = "per_example"  # a column that tables without text tasks do not have


def write_results_table(path: Path, files: Iterable[ScoreFile], diagnoses: Diagnoses) -> None:
    """Write files of scores, and of diagnoses what a report shows; the same scores give the same bytes.

    Raises:
        OsrmError: If two files have different labels of the same examples.
    """
    table = pa.Table.from_pylist(list(_score_files_to_results_rows(files)), schema=_SCHEMA)
    if table[_OF_TEXT].null_count == len(table):
        table = table.drop_columns([_OF_TEXT])
    shown = {name: {key: found.get(key) for key in ("sha256", "interference")} for name, found in diagnoses.items()}
    record = {**provenance.make_artifact_record("report", {}), "diagnoses": shown}
    table = table.replace_schema_metadata({_KEY: json.dumps(record, sort_keys=True)})
    pq.write_table(table, path, compression="zstd", compression_level=19)


def _score_files_to_results_rows(files: Iterable[ScoreFile]) -> Iterator[dict[str, Any]]:
    labels: dict[tuple[str, str], Values] = {}

    def rows(common: dict[str, Any], part: Part, scores: TaskScores) -> Iterator[dict[str, Any]]:
        for task, score in scores.items():
            row = {name: value for name, value in asdict(score).items() if name not in ("single", "sha256", "labels")}
            row |= {"part": part, "task": task, "examples_sha256": score.sha256, _OF_TEXT: score.per_example or None}
            known = labels.get((task, score.sha256))
            if score.labels and known is None:
                labels[task, score.sha256] = row["labels"] = score.labels
            elif score.labels and known != score.labels:
                raise OsrmError(f"{common['file']} has other labels of '{task}' than a file with the same examples")
            yield {**common, **row}

    for file in files:
        about: dict[str, Any] = {"file": file.name, "file_sha256": file.sha256, "arm": file.arm}
        about |= {"split": file.split, "dtype": file.dtype}
        known = {row["task"]: row for row in rows(about, "test", file.single)}
        for task, adapter in file.adapters.items():
            yield {"part": "test", "task": task, **about, **known.get(task, {}), "adapter": json.dumps(asdict(adapter))}
        yield from rows(about, "validation", file.single_validation)
        for point, merge in enumerate(file.merges):
            options = json.dumps(merge.options, sort_keys=True)
            common = {**about, "point": point, "method": merge.method, "options": options}
            common |= {"calibrated": merge.calibrated, "chosen": merge.chosen}
            yield from rows(common, "test", merge.test)
            yield from rows(common, "validation", merge.validation)


def read_results_table(path: Path) -> tuple[list[ScoreFile], Diagnoses]:
    """What ``write_results_table`` wrote.

    Raises:
        OsrmError: If the file is missing, damaged or another table.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise OsrmError(f"{path} is missing", "make it with 'osrm report --table'") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise OsrmError(f"{path} cannot be read: {reason}", "expected a table of 'osrm report --table'") from None
    names = [name for name in _SCHEMA.names if name != _OF_TEXT or name in table.column_names]
    if table.column_names != names or _KEY not in (table.schema.metadata or {}):
        raise OsrmError(f"{path} is not a table of 'osrm report --table'")
    try:
        record = TypeAdapter(dict[str, Any]).validate_json(table.schema.metadata[_KEY])
        diagnoses = TypeAdapter(dict[str, dict[str, Any]]).validate_python(record.get("diagnoses"))
        rows = TypeAdapter(list[_Row]).validate_python(table.to_pylist(maps_as_pydicts="strict"))
        labels = {(row.task, row.examples_sha256 or ""): row.labels for row in rows if row.labels}
        files = [_results_rows_to_score_file(list(group), labels) for _, group in groupby(rows, lambda row: row.file)]
    except ValidationError as error:
        raise OsrmError(f"{path} cannot be read: {describe_error(error)}", "make it anew") from None
    return files, diagnoses


def _results_rows_to_score_file(rows: list[_Row], labels: Mapping[tuple[str, str], Values]) -> ScoreFile:
    labelled = any(row.predictions for row in rows)

    def scores(rows: Iterable[_Row], part: Part) -> TaskScores:
        return {
            row.task: TaskScore(
                row.metrics or {},
                row.headline,
                None,
                row.examples or 0,
                row.examples_sha256 or "",
                row.predictions or (),
                labels.get((row.task, row.examples_sha256 or ""), ()) if labelled and part == "test" else (),
                per_example=row.per_example or {},
            )
            for row in rows
            if row.part == part and row.headline is not None
        }

    points = [list(group) for _, group in groupby(rows, lambda row: row.point)]
    single, merges = points[0], points[1:] if rows[0].point is None else points
    first = rows[0]
    options = TypeAdapter(dict[str, Any])
    return ScoreFile(
        first.file,
        first.file_sha256,
        first.split,
        first.dtype,
        {row.task: TypeAdapter(AdapterRecord).validate_json(row.adapter) for row in single if row.adapter},
        scores(single, "test"),
        tuple(
            ScoredMerge(
                merge[0].method or "",
                options.validate_json(merge[0].options or "{}"),
                bool(merge[0].calibrated),
                scores(merge, "test"),
                scores(merge, "validation"),
                bool(merge[0].chosen),
            )
            for merge in merges
        ),
        scores(single, "validation"),
        first.arm,
    )
