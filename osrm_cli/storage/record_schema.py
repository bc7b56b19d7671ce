"""The schema of ``osrm.json`` and of the same record in a features file's header: the one place that checks its values.

Only keys that commands read are checked; all other keys are for people.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

# Names become files and folders.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=255)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class OpenSchema(BaseModel):
    """Further keys may have any value."""

    model_config = ConfigDict(extra="allow", strict=True, defer_build=True)


class ClosedSchema(BaseModel):
    """There are no further keys."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class BaseSchema(ClosedSchema):
    """The base model that an artifact belongs to, see ``BaseModelId``."""

    name: Text
    revision: Text | None
    sha256: Text


class RecordedTaskSchema(ClosedSchema):
    """A task, see ``Task.to_dict``."""

    name: Name
    columns: list[Text] = Field(default_factory=list)
    labels: list[Text | int] | None = None
    metrics: list[Text] = Field(default_factory=list)
    max_length: PositiveInt | None = None
    kind: Literal["classification", "multi-label", "generation"] = "classification"
    max_new_tokens: PositiveInt | None = None
    stop: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_record_whole(self) -> Self:
        """A start knows the name alone of a task that has no features."""
        missing = {"columns", "labels", "metrics"} - self.model_fields_set
        if missing and self.model_fields_set != {"name"}:
            raise ValueError(f"{min(missing)} is missing")
        return self


class _Data(OpenSchema):
    source: Text | None = None
    sha256: Text | None = None


class _Template(ClosedSchema):
    chat_template: Text | None
    eos_token: Text


class _Rest(ClosedSchema):
    path: Text
    sha256: Text


class _Dev(OpenSchema):
    scores: dict[str, FiniteFloat]
    sha256: Text | None = None
    max_length: PositiveInt | None = None
    dtype: Text | None = None


class _Input(OpenSchema):
    path: Text
    sha256: Text | None = None
    task: Name | None = None
    dev: _Dev | None = None
    template: _Template | None = None


class SettingsSchema(OpenSchema):
    """Settings of the command."""

    max_length: PositiveInt | dict[str, PositiveInt] | None = None
    objective: Text = ""
    statistic: Text | None = None
    eps: FiniteFloat = 0.0
    seed: NonNegativeInt = 0


class RecordSchema(OpenSchema):
    """The keys of ``osrm.json`` that commands read."""

    command: Text | None = None
    base: BaseSchema | None = None
    settings: SettingsSchema | None = None
    task: RecordedTaskSchema | None = None
    data: _Data | dict[str, _Data] | None = None
    inputs: list[_Input] = Field(default_factory=list)
    form: Literal["adapter", "model", "task-aware"] | None = None
    tasks: dict[Name, RecordedTaskSchema | None] | None = None
    files: dict[Text, Text] | None = None
    rescalers: dict[str, float] | None = None
    template: _Template | None = None
    rest: _Rest | None = None
    start: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    teachers: dict[Name, dict[str, Any]] | None = None


def find_record_error(record: Mapping[str, Any]) -> str | None:
    """The first value of a record that cannot be used, in words; ``None`` if all can."""
    if record and not record.keys() & RecordSchema.model_fields.keys():
        return f"{min(map(str, record))} and its other keys are not those of a record"
    try:
        RecordSchema.model_validate(dict(record))
    except ValidationError as error:
        return describe_error(error)
    return None


def describe_error(error: ValidationError) -> str:
    """The first wrong value: its key, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("_", "dict[")))
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}" if key else str(first["msg"])
