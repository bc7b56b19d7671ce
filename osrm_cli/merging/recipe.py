"""Recipes: one YAML file that fully describes a merge. The effective one is written beside each result.

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
mergekit's recipes are understood too, see ``mergekit.py``.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from osrm_cli.adapters.config import pattern_matches
from osrm_cli.errors import OsrmError
from osrm_cli.merging.mergekit_recipe import translate_mergekit

RECIPE_NAME = "merge.yaml"

DepthWeights = float | Sequence[float]
Weight = DepthWeights | Mapping[str, DepthWeights]

_KEYS = ("method", "adapters", "options", "features", "data", "as", "dtype")


@dataclass(frozen=True)
class AdapterEntry:
    """One adapter of a recipe.

    Attributes:
        path: Folder or hub id.
        weight: A number, numbers over depth, or either by regular expression over layer names.
    """

    path: str
    weight: Weight = 1.0

    def weight_of(self, layer: str, depth: float) -> float:
        """The weight of one layer.

        Args:
            layer: Full name.
            depth: 0 for the first block of the model, 1 for the last.
        """
        weight = self.weight
        if isinstance(weight, Mapping):
            weight = next((value for pattern, value in weight.items() if pattern_matches(pattern, layer)), 1.0)
        if isinstance(weight, int | float):
            return float(weight)
        position = depth * (len(weight) - 1)
        lower = min(int(position), len(weight) - 1)
        upper = min(lower + 1, len(weight) - 1)
        return weight[lower] + (position - lower) * (weight[upper] - weight[lower])

    def check_patterns(self, layers: Collection[str]) -> None:
        """Check that every regular expression means a layer.

        Raises:
            OsrmError: Naming one that matches none.
        """
        if isinstance(self.weight, Mapping):
            for pattern in self.weight:
                if not any(pattern_matches(pattern, layer) for layer in layers):
                    raise OsrmError(
                        f"the weight of {self.path} for '{pattern}' matches no layer", f"layers: {min(layers)}, ..."
                    )


@dataclass(frozen=True)
class MergeRecipe:
    """Everything that decides the result of a merge.

    Attributes:
        method: Name of the merging method.
        adapters: What is merged.
        options: The method's options that are set, by their name on the command line without dashes.
        features: Folder of features files, for methods that need them.
        output: ``adapter`` or ``model``.
        dtype: Type of the written tensors; ``None`` for the widest of the inputs.
        data: Data for methods that need them, as ``--data`` names it; ``None`` for what each adapter was trained on.
    """

    method: str
    adapters: tuple[AdapterEntry, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    features: str | None = None
    output: str = "adapter"
    dtype: str | None = None
    data: str | None = None

    def write(self, folder: Path) -> None:
        """Write it as ``merge.yaml`` into a folder that is being staged."""
        values: dict[str, Any] = {
            "method": self.method,
            "adapters": [{"path": entry.path, "weight": entry.weight} for entry in self.adapters],
            "options": dict(sorted(self.options.items())),
            "as": self.output,
        }
        more = {"features": self.features, "data": self.data, "dtype": self.dtype}
        values |= {key: value for key, value in more.items() if value}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (folder / RECIPE_NAME).write_text(text, encoding="utf-8")


def read_recipe(path: Path) -> MergeRecipe:
    """Read a recipe, ours or mergekit's.

    Raises:
        OsrmError: If the file is missing, no YAML, or says something that is not understood.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OsrmError(f"{path} is missing") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OsrmError(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise OsrmError(f"{path} holds {type(values).__name__}, expected a mapping with 'method' and 'adapters'")
    try:
        if "merge_method" in values:
            values = translate_mergekit(values)
        return _recipe(values)
    except (TypeError, ValueError, re.error) as error:
        raise OsrmError(f"{path}: {error}", "the README has a recipe with every key") from None


def _recipe(values: Mapping[str, Any]) -> MergeRecipe:
    unknown = sorted(values.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown key '{unknown[0]}', expected {', '.join(_KEYS)}")
    if not isinstance(values.get("method"), str):
        raise ValueError("'method' is missing")
    adapters, options = values.get("adapters"), values.get("options") or {}
    if not isinstance(adapters, list) or not adapters:
        raise ValueError("'adapters' is missing, expected a list of paths")
    if not isinstance(options, dict):
        raise ValueError(f"'options' is {options!r}, expected a mapping such as {{lambda: 0.3}}")
    output = values.get("as", "adapter")
    if output not in ("adapter", "model"):
        raise ValueError(f"'as' is {output!r}, expected adapter or model")
    dtype = values.get("dtype")
    if dtype not in (None, "float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"'dtype' is {dtype!r}, expected float32, bfloat16, float16 or float64")
    entries = tuple(map(_entry, adapters))
    return MergeRecipe(values["method"], entries, options, values.get("features"), output, dtype, values.get("data"))


def _entry(value: Any) -> AdapterEntry:
    if isinstance(value, str):
        return AdapterEntry(value)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str) or value.keys() - {"path", "weight"}:
        raise ValueError(f"adapter {value!r}, expected a path, or 'path' and 'weight'")
    weight = value.get("weight", 1.0)
    if not isinstance(weight, dict):
        return AdapterEntry(value["path"], _gradient(weight))
    for pattern in weight:
        re.compile(pattern)
    return AdapterEntry(value["path"], {pattern: _gradient(number) for pattern, number in weight.items()})


def _gradient(value: Any) -> DepthWeights:
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
            raise ValueError(f"weight {number!r}, expected a number or a list of numbers")
    if not numbers:
        raise ValueError("a weight is an empty list")
    return tuple(map(float, numbers)) if isinstance(value, list) else float(value)
