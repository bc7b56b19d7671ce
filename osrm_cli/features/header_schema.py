"""The schema of a features file's header, a record with counts and layers: the one place that checks its values."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.table import find_statistic
from osrm_cli.storage.record_schema import (
    BaseSchema,
    ClosedSchema,
    OpenSchema,
    RecordedTaskSchema,
    RecordSchema,
    SettingsSchema,
    describe_error,
)

Count = Annotated[int, Field(ge=0, le=2**53)]  # every float64 below is exact
Width = Annotated[int, Field(ge=1, le=2**24)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Layer(ClosedSchema):
    source: str
    d_in: Width
    d_out: Width


class _Bound(ClosedSchema):
    error: Amount
    energy: Amount


class _Shards(ClosedSchema):
    count: Width
    batch_size: Annotated[int, Field(ge=1)]


class _Settings(SettingsSchema):
    pooling: Literal["masked", "padded"] | None = None


class _Budget(OpenSchema):
    epsilon: Amount
    delta: Amount


class FeaturesHeaderSchema(RecordSchema):
    """What is read of a features file's header."""

    command: Literal["collect"]
    task: RecordedTaskSchema
    base: BaseSchema
    layers: Annotated[dict[str, _Layer], Field(min_length=1)]
    statistics: Annotated[list[str], Field(min_length=1)]
    tokens: Count
    examples: Count
    target_modules: list[str]
    fan_in_fan_out: bool
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"] | None = None
    settings: _Settings | None = None
    bounds: dict[str, _Bound] = Field(default_factory=dict)
    shards: _Shards | None = None
    private: _Budget | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name, layer in self.layers.items():
            source = self.layers.get(layer.source)
            if source is None or source.d_in != layer.d_in:
                raise ValueError(f"layer {name!r} has its statistics under {layer.source!r}, which does not fit")
        for statistic in self.statistics:
            try:
                known = find_statistic(statistic).name == statistic
            except OsrmError:
                known = False
            if not known:
                raise ValueError(f"unknown statistic {statistic!r}")
        return self


_HEADER = TypeAdapter(FeaturesHeaderSchema)


def find_features_header_error(record: Mapping[str, Any]) -> str | None:
    """The first value of a header that cannot be used, and why; ``None`` if all can."""
    try:
        _HEADER.validate_python(dict(record))
    except ValidationError as error:
        return describe_error(error)
    return None
