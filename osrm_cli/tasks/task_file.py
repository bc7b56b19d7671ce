"""``task.toml``: what the user says about a task of their own."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.task import GENERATION, MULTI_LABEL

TaskFields = dict[str, Any]  # the keys of task.toml; ``labels`` is None for regression


def _task_value_as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _check_distinct_task_values(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("two are equal")
    return values


_Names = Annotated[tuple[str, ...], BeforeValidator(_task_value_as_tuple), AfterValidator(_check_distinct_task_values)]
_Classes = Annotated[
    tuple[str, ...] | tuple[int, ...],
    BeforeValidator(_task_value_as_tuple),
    Field(min_length=2),
    AfterValidator(_check_distinct_task_values),
]


class TaskFile(BaseModel):
    """The keys of ``task.toml``; each description says what is expected of the value."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["classification", "multi-label", "generation"] | None = Field(
        None, description='"classification", "multi-label", or "generation" where the answer is text'
    )
    columns: _Names | None = Field(None, min_length=1, max_length=2, description="one or two column names")
    label_column: str | Annotated[_Names, Field(min_length=2)] | None = Field(
        None, description="a column name, or one for each class"
    )
    labels: Literal["float"] | _Classes | None = Field(
        None, description='two or more classes, or "float" for regression'
    )
    metrics: _Names | None = Field(None, min_length=1, max_length=5, description="one or more metric names")
    max_length: int | None = Field(None, gt=0, description="a number of tokens")
    max_new_tokens: int | None = Field(None, gt=0, description="a number of tokens")
    stop: _Names | None = Field(None, description="one or more strings that end an answer")
    split_dev: float | None = Field(None, gt=0, lt=1, description="the share of train that is dev, between 0 and 1")


def read_task_file(path: Path) -> TaskFields:
    """The keys that a ``task.toml`` sets.

    Raises:
        OsrmError: If the file is not TOML, or holds an unknown key or a value of the wrong kind.
    """
    try:
        declared = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OsrmError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise OsrmError(f"{path} is not a TOML file: {error}") from None
    if "metrics" not in declared and "metric" in declared:  # most tasks have one
        declared["metrics"] = declared.pop("metric")
    try:
        fields = TaskFile.model_validate(declared).model_dump(exclude_unset=True)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        known = TaskFile.model_fields
        if key not in known:
            raise OsrmError(f"{path}: unknown key '{key}'", f"the keys are: {', '.join(known)}") from None
        hint = "a model reads one text or a pair: join the others into one column" if key == "columns" else None
        raise OsrmError(f"{path}: {key} is {declared[key]!r}, expected {known[key].description}", hint) from None
    if fields.get("labels") == "float":
        fields["labels"] = None
    return fields


def check_task_metrics(fields: TaskFields, path: Path) -> None:
    """Check that the metrics fit the kind of label.

    Raises:
        OsrmError: Naming those that do.
    """
    from osrm_cli.tasks.metrics import CLASSIFICATION_METRICS, MULTI_LABEL_METRICS, REGRESSION_METRICS
    from osrm_cli.tasks.text.metrics import TEXT_METRICS

    if fields.get("kind") == GENERATION:
        known, kind = TEXT_METRICS, "text"
    elif fields.get("kind") == MULTI_LABEL:
        known, kind = tuple(MULTI_LABEL_METRICS), "several labels a row"
    elif fields["labels"] is None:
        known, kind = tuple(REGRESSION_METRICS), "regression"
    else:
        known, kind = tuple(CLASSIFICATION_METRICS), "classes"
    for metric in fields["metrics"]:
        if metric not in known:
            raise OsrmError(f"{path}: '{metric}' is not a metric for {kind}", f"choose from: {', '.join(known)}")
