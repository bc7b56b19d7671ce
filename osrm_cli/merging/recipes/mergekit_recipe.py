"""Translation of mergekit's recipes, as far as both programs mean the same; anything else is refused."""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from osrm_cli.merging.recipes.recipe import DepthWeights, MergeRecipe, RecipeEntry, Weight


@dataclass(frozen=True)
class _MergekitEqual:
    """What one of mergekit's methods is here.

    Attributes:
        method: Our method.
        divides: Whether mergekit divides by the sum of the weights by default; ``None`` where it has no weights.
        options: By mergekit's parameter, our option and mergekit's default.
        rescales: Whether mergekit enlarges what it keeps by default.
    """

    method: str
    divides: bool | None = None
    options: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    rescales: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Mergekit's parameters that have an equal."""
        weighed = () if self.divides is None else ("normalize", "lambda", "weight", "density", "rescale")
        return (*weighed, "int8_mask", *(name for name in self.options if name != "density"))


_DENSITY = {"density": ("density", 1.0)}
_DELLA = {**_DENSITY, "epsilon": ("window", 0.15)}
_BREADCRUMBS = {**_DENSITY, "gamma": ("outliers", 0.01)}
_METHODS = {
    "linear": _MergekitEqual("average", True),
    "task_arithmetic": _MergekitEqual("task-arith", False),
    "ties": _MergekitEqual("ties", True, _DENSITY),
    "dare_linear": _MergekitEqual("dare", False, _DENSITY, rescales=True),
    "dare_ties": _MergekitEqual("dare-ties", False, _DENSITY, rescales=True),
    "della": _MergekitEqual("della", True, _DELLA, rescales=True),
    "della_linear": _MergekitEqual("della-linear", False, _DELLA, rescales=True),
    "breadcrumbs": _MergekitEqual("breadcrumbs", False, _BREADCRUMBS),
    "breadcrumbs_ties": _MergekitEqual("breadcrumbs-ties", False, _BREADCRUMBS),
    "sce": _MergekitEqual("sce", options={"select_topk": ("density", 1.0)}),
    "ram": _MergekitEqual("ram", options={"epsilon": ("epsilon", 1e-5)}),
    "ramplus_tl": _MergekitEqual("ram", options={"epsilon": ("epsilon", 1e-5), "r": ("bonus", 0.1)}),
    "model_stock": _MergekitEqual("model-stock"),
    "passthrough": _MergekitEqual("task-arith"),
}
_ELECTING = ("ties", "dare-ties", "della", "breadcrumbs-ties")
# Methods that take whole weights where ours take updates: the same words, other results.
_OF_WHOLE_WEIGHTS = {
    "karcher": "its mean is one of whole weights; 'osrm merge ADAPTERS --method karcher' is that of the updates",
    "slerp": "it turns whole weights; 'osrm merge ADAPTERS --method karcher' turns the updates, half way",
    "nuslerp": "'osrm merge ADAPTERS --method karcher' turns the updates, but half way alone",
    "multislerp": "'osrm merge ADAPTERS --method multislerp' is that of the updates",
    "nearswap": "its base model would be an adapter; 'osrm merge ADAPTERS --method nearswap --reach T --primary NAME'",
    "arcee_fusion": "it chooses entries of whole weights",
}
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_WEIGHT = ".weight"  # mergekit's filters are parts of names of tensors, ours of layers


@dataclass(frozen=True)
class ModelReference:
    """A model of mergekit's: ``base+adapter``, a base model, or here also an adapter alone.

    Attributes:
        name: What stands before the plus, without a revision; all of it where there is none.
        adapter: What stands after the plus.
    """

    name: str
    adapter: str | None = None


def _parse_mergekit_reference(value: Any) -> ModelReference:
    if not isinstance(value, str) or not value:
        raise ValueError(f"model {reprlib.repr(value)}, expected 'model: base+adapter'")
    name, plus, adapter = value.partition("+")
    if not plus or Path(value).is_dir():  # a folder's name may have a plus
        return ModelReference(value)
    if not name.strip() or not adapter.strip() or "+" in adapter:
        raise ValueError(f"model {value!r}, expected one base model and one adapter: 'model: base+adapter'")
    return ModelReference(name.strip().partition("@")[0], adapter.strip())


def _check_mergekit_parameters(value: Any) -> dict[str, Any]:
    parameters = {} if value is None else value
    if not isinstance(parameters, dict):
        raise ValueError(f"'parameters' is {reprlib.repr(value)}, expected a mapping")
    return parameters


def _check_mergekit_method(value: Any) -> str:
    if isinstance(value, str) and value in _OF_WHOLE_WEIGHTS:
        raise ValueError(f"mergekit's {value} has no equal here: {_OF_WHOLE_WEIGHTS[value]}")
    if not isinstance(value, str) or value not in _METHODS:
        raise ValueError(f"'merge_method' is {reprlib.repr(value)}, expected {', '.join(_METHODS)}")
    return value


_Parameters = Annotated[dict[str, Any], BeforeValidator(_check_mergekit_parameters)]
_Reference = Annotated[ModelReference, BeforeValidator(_parse_mergekit_reference)]


class _MergekitModel(BaseModel):
    model: _Reference
    parameters: _Parameters = Field(default_factory=dict)


def _check_mergekit_model(value: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("model"), str):
        raise ValueError(f"model {reprlib.repr(value)}, expected 'model: base+adapter'")
    if unknown := [key for key in value if key not in ("model", "parameters")]:
        raise ValueError(f"mergekit's key {unknown[0]!r} has no equal here, expected model, parameters")
    return value


class MergekitRecipe(BaseModel):
    """The keys of a mergekit recipe that can have an equal here."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    merge_method: Annotated[str, BeforeValidator(_check_mergekit_method)] = Field(description=", ".join(_METHODS))
    models: list[Annotated[_MergekitModel, BeforeValidator(_check_mergekit_model)]] = Field(
        min_length=1, description="a list of 'model: base+adapter'"
    )
    parameters: _Parameters = Field(default_factory=dict, description="a mapping")
    base_model: _Reference | None = Field(None, description="a folder or hub id")
    dtype: str | None = Field(None, description=", ".join(_DTYPES))
    out_dtype: str | None = Field(None, description=", ".join(_DTYPES))
    tokenizer_source: str | None = Field(None, description="base: the base model's tokenizer is kept")
    chat_template: str | None = Field(None, description="auto: the base model's template is kept")


def translate_mergekit(recipe: MergekitRecipe) -> MergeRecipe:
    """Turn a mergekit recipe whose models are adapters into one of ours.

    A model is ``base+adapter``, or an adapter's path alone. mergekit's filters, which are parts of tensor names, become
    regular expressions; its lists over depth mean the same as ours.

    Raises:
        ValueError: If the recipe asks for something that has no equal here.
    """
    equal = _METHODS[recipe.merge_method]
    for parameters in (recipe.parameters, *(model.parameters for model in recipe.models)):
        for name in parameters:
            if name not in equal.parameters:
                expected = ", ".join(equal.parameters)
                raise ValueError(
                    f"mergekit's parameter {name!r} has no equal in {recipe.merge_method} here, expected {expected}"
                )
    _check_mergekit_files(recipe)
    base = _single_mergekit_base(recipe)
    shared = recipe.parameters
    if _parse_mergekit_flag(shared, "rescale", equal.rescales) != equal.rescales:
        raise ValueError(f"'rescale: {str(not equal.rescales).lower()}' of {recipe.merge_method} has no equal here")
    # The base model itself, listed as a model, adds nothing to a sum; in an average it counts with its weight.
    listed = [model for model in recipe.models if model.model.adapter or model.model.name != base]
    if not listed:
        raise ValueError("none of the models is an adapter, expected 'model: base+adapter'")
    _check_mergekit_count(recipe.merge_method, len(listed), len(recipe.models))
    weights = [1.0 if equal.divides is None else _mergekit_weight_of_model(model, shared) for model in listed]
    entries = [
        RecipeEntry(model.model.adapter or model.model.name, weight, base or None, is_strict=False)
        for model, weight in zip(listed, weights, strict=True)
    ]
    options: dict[str, Any] = {"lambda": _parse_mergekit_number("lambda", shared.get("lambda", 1.0))}
    options |= _translate_mergekit_options(equal, listed, shared)
    if equal.divides is None:
        method = equal.method
    else:
        is_linear = recipe.merge_method == "linear"
        others = (
            [_mergekit_weight_of_model(model, shared) for model in recipe.models if model not in listed]
            if is_linear
            else []
        )
        divide = _parse_mergekit_flag(shared, "normalize", equal.divides)
        method, entries = _method_for_division(equal.method, divide, entries, others, options)
    return MergeRecipe(method, tuple(entries), options, dtype=recipe.out_dtype or recipe.dtype)


def _check_mergekit_count(method: str, adapters: int, models: int) -> None:
    if method == "passthrough" and models > 1:
        raise ValueError(f"'passthrough' of {models} models, expected one: it adds nothing up")
    if method == "model_stock" and adapters < 2:
        raise ValueError("'model_stock' of one adapter, expected two or more, as in mergekit")


def _translate_mergekit_options(
    equal: _MergekitEqual, models: Sequence[_MergekitModel], shared: Mapping[str, Any]
) -> dict[str, float]:
    """Our options beside lambda; mergekit can have others for each model, we cannot."""
    options = {}
    for name, (option, default) in equal.options.items():
        values = {
            _parse_mergekit_number(name, model.parameters.get(name, shared.get(name, default))) for model in models
        }
        if len(values) != 1:
            raise ValueError(f"{name} {', '.join(map(str, sorted(values)))}: expected one for all adapters")
        options[option] = values.pop()
    if "window" in options:
        half, density = options["window"], options["density"]
        if density < 1 and not 0 <= half <= min(density / 2, 1 - density):
            raise ValueError(
                f"epsilon {half:g} at density {density:g} has no equal here, expected at most half the density, and no "
                "more than is left to 1"
            )
        options["window"] = 2 * half if density < 1 else 0.0
    return options


def _check_mergekit_files(recipe: MergekitRecipe) -> None:
    """Check what a recipe says of the files that it writes: types, tokenizer, chat template."""
    for key in ("dtype", "out_dtype"):
        value = getattr(recipe, key)
        if value is not None and value not in _DTYPES:
            raise ValueError(f"'{key}' is {value!r}, expected {', '.join(_DTYPES)}")
    for key, default in (("tokenizer_source", "base"), ("chat_template", "auto")):
        value = getattr(recipe, key)
        if value not in (None, default):
            raise ValueError(
                f"'{key}: {value}' has no equal here: the base model's is kept, as '{key}: {default}' says"
            )


def _single_mergekit_base(recipe: MergekitRecipe) -> str:
    """The base model that every update belongs to; empty where the recipe names none."""
    base = recipe.base_model
    if base and base.adapter:
        raise ValueError(
            f"'base_model: {base.name}+{base.adapter}' has no equal here: updates belong to the base model alone"
        )
    bases = [model.model.name for model in recipe.models if model.model.adapter]
    name = base.name.partition("@")[0] if base else next(iter(bases), "")
    for other in bases:
        if other != name:
            raise ValueError(f"base models {name} and {other}, expected one for all adapters")
    return name


def _method_for_division(
    method: str, divide: bool, entries: list[RecipeEntry], others: Sequence[Weight], options: dict[str, Any]
) -> tuple[str, list[RecipeEntry]]:
    """Our method that divides by the weights, or does not; what it needs beyond its name goes into ``options``.

    mergekit divides the entries that agree by the sum of their weights, TIES by their number: the same up to one factor
    if all weights are equal, else nothing here is equal to it.

    Args:
        method: Our method.
        divide: Whether mergekit divides.
        entries: The adapters with mergekit's weights.
        others: Weights of the base model where it is one of the models of an average.
        options: Options of the method.
    """
    weights = [entry.weight for entry in entries]
    numbers = [weight for weight in (*weights, *others) if isinstance(weight, float)]
    is_plain, total = len(numbers) == len(weights) + len(others), math.fsum(numbers)
    if method == "task-arith":
        return ("average" if divide else method), entries
    if method == "average" and divide and not others:
        return method, entries
    if method == "average":
        if not is_plain or (not divide and abs(total - 1) >= 1e-9):
            what = "a base model among the models" if divide else "'normalize: false'"
            raise ValueError(f"{what} scales the base model unless the weights are numbers that add up to 1")
        if abs(total) < 1e-12:
            raise ValueError("the weights add up to 0, an average needs another sum")
        factor = 1 / total if divide else 1.0
        return "task-arith", [_scale_mergekit_weight(entry, factor) for entry in entries]
    if method not in _ELECTING:
        if divide and (not is_plain or abs(total) < 1e-8):
            raise ValueError("'normalize: true' has no equal here unless the weights are numbers with a sum")
        options["lambda"] /= total if divide else 1.0
        return method, entries
    options["aggregate"] = "mean" if divide else "sum"
    if divide:
        if not is_plain or len(set(numbers)) > 1 or numbers[0] <= 0:
            raise ValueError("'normalize: true' with different weights has no equal here")
        options["lambda"] /= numbers[0]
    return method, entries


def _scale_mergekit_weight(entry: RecipeEntry, factor: float) -> RecipeEntry:
    if not isinstance(entry.weight, float):
        raise TypeError(f"{entry.path}: weight {entry.weight!r}, expected a number")
    return RecipeEntry(entry.path, entry.weight * factor, entry.base, entry.is_strict)


def _mergekit_weight_of_model(model: _MergekitModel, shared: Mapping[str, Any]) -> Weight:
    """A model's weight: the value of the first filter that matches; below its own values come those for all models."""
    path = model.model.adapter or model.model.name
    patterns: dict[str, DepthWeights] = {}
    for value in (model.parameters.get("weight"), shared.get("weight")):
        if value is None:
            continue
        for condition in value if _is_mergekit_conditional(value) else [{"value": value}]:
            if not isinstance(condition, dict) or "value" not in condition or condition.keys() - {"value", "filter"}:
                raise ValueError(f"weight {reprlib.repr(condition)}, expected 'filter' and 'value'")
            pattern = _mergekit_filter_pattern(condition.get("filter"))
            patterns.setdefault(pattern, _mergekit_depth_weights(condition["value"]))
            if pattern == ".*":
                return patterns if len(patterns) > 1 else patterns[".*"]
    if patterns:
        raise ValueError(f"model {path} has no weight where no filter matches: add '- value: NUMBER' at the end")
    raise ValueError(f"model {path} has no weight")


def _is_mergekit_conditional(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _mergekit_filter_pattern(text: Any) -> str:
    """A regular expression over layers for a part of a tensor's name, which ends in ``.weight``."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"filter {reprlib.repr(text)}, expected a part of a tensor's name")
    if text in (None, "*", "") or text in _WEIGHT:
        return ".*"
    ends = [text.removesuffix(_WEIGHT[:size]) for size in range(1, len(_WEIGHT) + 1) if text.endswith(_WEIGHT[:size])]
    return "|".join([f".*{re.escape(text)}.*", *(f".*{re.escape(end)}" for end in ends)])


def _mergekit_depth_weights(value: Any) -> DepthWeights:
    if isinstance(value, list) and value:
        return tuple(_parse_mergekit_number("weight", item) for item in value)
    return _parse_mergekit_number("weight", value)


def _parse_mergekit_number(name: str, value: Any) -> float:
    """A finite number; like mergekit, also one that YAML has read as a text."""
    if isinstance(value, list | dict) and name != "weight":
        raise ValueError(f"{name} {reprlib.repr(value)}: a {name} over depth or by filter has no equal here")
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise ValueError(f"{name} {reprlib.repr(value)}, expected a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} {reprlib.repr(value)}, expected a finite number")
    return number


def _parse_mergekit_flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"'{name}' is {reprlib.repr(value)}, expected true or false")
    return value
