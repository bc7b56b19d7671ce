"""Recipe files: one YAML file that fully describes a merge.

    method: task-arith
    adapters:
      - path: adapters/sst2
        weight: 0.7
      - path: adapters/cola
        weight: [0.2, 1.0]            # from the first block to the last
      - path: adapters/mrpc
        weight: {query: 0.5, value: [0, 1]}
    options: {lambda: 0.3}

Paths are relative to the folder that the command runs in. A weight is a number, a list of numbers that is interpolated
over depth, or either of them by regular expression over layer names: the first that matches the end of the name counts.
mergekit's recipes are understood too, see ``mergekit_recipe.py``.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from osrm_cli.adapters.patterns import check_pattern
from osrm_cli.errors import OsrmError
from osrm_cli.merging.recipes.mergekit_recipe import MergekitRecipe, translate_mergekit
from osrm_cli.merging.recipes.recipe import DepthWeights, MergeRecipe, RecipeEntry, Weight
from osrm_cli.storage.yaml_file import read_yaml

_HINT = "docs/reference/file-formats.md has a recipe with every key"
_NUMBER: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(allow_inf_nan=False)], config=ConfigDict(strict=True))


def _check_depth_weights(value: Any) -> DepthWeights:
    numbers = value if isinstance(value, list) else [value]
    if not numbers:
        raise ValueError("a weight is an empty list")
    checked = []
    for number in numbers:
        try:
            checked.append(_NUMBER.validate_python(number))
        except ValidationError:
            raise ValueError(f"weight {reprlib.repr(number)}, expected a number or a list of numbers") from None
    return tuple(checked) if isinstance(value, list) else checked[0]


def _check_recipe_weight(value: Any) -> Weight:
    if not isinstance(value, dict):
        return _check_depth_weights(value)
    for pattern in value:
        if not isinstance(pattern, str):
            raise ValueError(f"the key {pattern!r} of a weight, expected a regular expression over layer names")
    return {check_pattern(pattern): _check_depth_weights(weight) for pattern, weight in value.items()}


def _check_recipe_entry(value: Any) -> Any:
    entry = {"path": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or entry.keys() - {"path", "weight"}:
        raise ValueError(f"adapter {reprlib.repr(value)}, expected a path, or 'path' and 'weight'")
    return entry


class _Entry(BaseModel):
    path: str
    weight: Annotated[Any, PlainValidator(_check_recipe_weight)] = 1.0


class RecipeSchema(BaseModel):
    """The keys of a recipe; each description says what is expected of the value."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: str = Field(description="the name of a merging method")
    adapters: list[Annotated[_Entry, BeforeValidator(_check_recipe_entry)]] = Field(
        min_length=1, description="a list of paths"
    )
    options: dict[str, Any] | None = Field(None, description="a mapping such as {lambda: 0.3}")
    features: str | None = Field(None, description="a folder")
    data: str | None = Field(None, description="hub, mini or a folder")
    output: Literal["adapter", "model"] = Field("adapter", alias="as", description="adapter or model")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="float32, bfloat16, float16 or float64"
    )
    base: str | None = Field(None, description="the base model of full models or of the result: a folder or hub id")


def read_recipe(path: Path) -> MergeRecipe:
    """Read a recipe, ours or mergekit's.

    Raises:
        OsrmError: If the file is missing, is not YAML, or says something that is not understood.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise OsrmError(f"{path} holds {type(values).__name__}, expected a mapping with 'method' and 'adapters'")
    schema = MergekitRecipe if "merge_method" in values else RecipeSchema
    try:
        recipe = schema.model_validate(values)
        return translate_mergekit(recipe) if isinstance(recipe, MergekitRecipe) else _convert_recipe(recipe)
    except ValidationError as error:
        raise OsrmError(f"{path}: {_describe_recipe_error(error, schema, values)}", _HINT) from None
    except ValueError as error:
        raise OsrmError(f"{path}: {error}", _HINT) from None


def _convert_recipe(recipe: RecipeSchema) -> MergeRecipe:
    entries = tuple(RecipeEntry(entry.path, entry.weight) for entry in recipe.adapters)
    options = recipe.options or {}
    more = {"dtype": recipe.dtype, "data": recipe.data, "base": recipe.base}
    return MergeRecipe(recipe.method, entries, options, recipe.features, recipe.output, **more)


def _describe_recipe_error(error: ValidationError, schema: type[BaseModel], values: Mapping[str, Any]) -> str:
    """The first wrong value in words."""
    # What a recipe cannot ask for at all counts before values that are missing because of it.
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda row: (row["loc"][0] != "merge_method", row["type"] != "extra_forbidden"))
    key = first["loc"][0]
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if key not in fields:
        known = ", ".join(fields)
        if schema is MergekitRecipe:
            return f"mergekit's key {key!r} has no equal here, expected {known}"
        return f"unknown key {key!r}, expected {known}"
    expected = fields[str(key)].description
    if key not in values:
        return f"'{key}' is missing, expected {expected}"
    return f"'{key}' is {reprlib.repr(values[str(key)])}, expected {expected}"
