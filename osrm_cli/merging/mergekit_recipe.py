"""mergekit's recipes in our words, as far as both mean the same. Anything else is refused, never guessed."""

import re
from collections.abc import Mapping
from typing import Any

# mergekit's method -> ours, and whether it divides by the sum of the weights unless told otherwise.
_METHODS = {
    "linear": ("average", True),
    "task_arithmetic": ("task-arith", False),
    "ties": ("ties", True),
    "dare_linear": ("dare", False),
    "dare_ties": ("dare-ties", False),
}
_KEYS = {"merge_method", "models", "parameters", "base_model", "dtype", "out_dtype"}
_MODEL_PARAMETERS = {"weight", "density"}
_PARAMETERS = {"normalize", "lambda", "weight", "density", "int8_mask", "rescale"}


def translate_mergekit(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a mergekit recipe whose models are adapters into one of ours.

    A model is ``base+adapter``, or an adapter's path alone. mergekit's filters, which are parts of tensor names, become
    regular expressions; its lists over depth mean the same as ours.

    Raises:
        ValueError: If the recipe asks for something that has no equal here.
    """
    _check_keys("key", values, _KEYS)
    name = values["merge_method"]
    if name not in _METHODS:
        raise ValueError(f"mergekit's method '{name}', expected {', '.join(_METHODS)}")
    method, divides = _METHODS[name]
    shared = values.get("parameters") or {}
    _check_keys("parameter", shared, _PARAMETERS)
    if shared.get("rescale") is False:
        raise ValueError("'rescale: false' has no equal here")
    models = [_model(model) for model in values.get("models") or ()]
    # The base model itself, listed as a model, adds nothing to a sum; to an average of models it would.
    listed = [(path, own) for path, own in models if name == "linear" or path != values.get("base_model")]
    adapters = [
        {"path": path, "weight": _weight(path, own.get("weight", shared.get("weight")))} for path, own in listed
    ]
    options: dict[str, Any] = {"lambda": float(shared.get("lambda", 1.0))}
    if method in ("ties", "dare", "dare-ties"):
        densities = {own.get("density", shared.get("density", 1.0)) for _, own in listed}
        if len(densities) != 1:
            raise ValueError(f"densities {sorted(densities)}, expected one for all adapters")
        options["density"] = densities.pop()
    method = _divided(method, bool(shared.get("normalize", divides)), [item["weight"] for item in adapters], options)
    dtype = values.get("out_dtype") or values.get("dtype")
    return {"method": method, "adapters": adapters, "options": options} | ({"dtype": dtype} if dtype else {})


def _divided(method: str, divide: bool, weights: list[Any], options: dict[str, Any]) -> str:
    """Our method that divides by the weights, or does not; what it needs beyond its name goes into ``options``.

    mergekit divides the entries that agree by the sum of their weights, TIES by their number: the same up to one factor
    if all weights are equal, else nothing here is equal to it.
    """
    if method == "task-arith":
        return "average" if divide else method
    if method == "average" and not divide:
        if all(isinstance(weight, int | float) for weight in weights) and abs(sum(weights) - 1) < 1e-9:
            return "task-arith"
        raise ValueError("'normalize: false' scales the base model unless the weights add up to 1")
    if method == "dare" and divide:
        raise ValueError("'normalize: true' of dare_linear has no equal here, divide 'lambda' instead")
    if method in ("ties", "dare-ties"):
        options["aggregate"] = "mean" if divide else "sum"
        if divide:
            if any(not isinstance(weight, int | float) or weight != weights[0] or weight <= 0 for weight in weights):
                raise ValueError("'normalize: true' with different weights has no equal here")
            options["lambda"] /= weights[0]
    return method


def _model(value: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(value, dict) or not isinstance(value.get("model"), str):
        raise ValueError(f"model {value!r}, expected 'model: base+adapter'")
    _check_keys("key", value, {"model", "parameters"})
    own = value.get("parameters") or {}
    _check_keys("parameter", own, _MODEL_PARAMETERS)
    return value["model"].rpartition("+")[2].strip(), own


def _weight(path: str, value: Any) -> Any:
    """A weight without mergekit's ``- filter: ... value: ...``; the last one without a filter is for all others."""
    if value is None:
        raise ValueError(f"model {path} has no weight")
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        return value
    weights = {}
    for item in value:
        if not isinstance(item, dict) or "value" not in item:
            raise ValueError(f"weight {item!r}, expected 'filter' and 'value'")
        wanted = item.get("filter")
        weights[".*" if wanted in (None, "*") else f".*{re.escape(wanted)}.*"] = item["value"]
    return weights


def _check_keys(kind: str, found: Mapping[str, Any], expected: set[str]) -> None:
    if unknown := sorted(found.keys() - expected):
        raise ValueError(f"mergekit's {kind} '{unknown[0]}' has no equal here, expected {', '.join(sorted(expected))}")
