"""A recipe: everything that decides the result of a merge. The effective one is written beside each result."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from osrm_cli.adapters.patterns import pattern_matches
from osrm_cli.errors import OsrmError

RECIPE_NAME = "merge.yaml"
AUTO = "auto"  # in the place of a method: the best for what is at hand

DepthWeights = float | Sequence[float]
Weight = DepthWeights | Mapping[str, DepthWeights]


@dataclass(frozen=True)
class RecipeEntry:
    """One adapter of a recipe.

    Attributes:
        path: Folder or hub id.
        weight: A number, numbers over depth, or either by regular expression over layer names.
        base: The base model that the recipe says the adapter is for; ``None`` if it does not say.
        is_strict: Whether every regular expression has to match a layer.
    """

    path: str
    weight: Weight = 1.0
    base: str | None = None
    is_strict: bool = True

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

    def with_patterns_of(self, layers: Collection[str]) -> "RecipeEntry":
        """The entry without the regular expressions that match none of its adapter's layers.

        Raises:
            OsrmError: Naming one, if each has to match.
        """
        if not isinstance(self.weight, Mapping):
            return self
        unused = [key for key in self.weight if not any(pattern_matches(key, layer) for layer in layers)]
        if unused and self.is_strict:
            raise OsrmError(
                f"the weight of {self.path} for '{unused[0]}' matches no layer", f"layers: {min(layers)}, ..."
            )
        return replace(self, weight={key: value for key, value in self.weight.items() if key not in unused})


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
        base: The base model of full models, or of a distillation's result; adapters record their own.
    """

    method: str
    adapters: tuple[RecipeEntry, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    features: str | None = None
    output: str = "adapter"
    dtype: str | None = None
    data: str | None = None
    base: str | None = None

    def write(self, folder: Path) -> None:
        """Write it as ``merge.yaml`` into a folder that is being staged."""
        values: dict[str, Any] = {
            "method": self.method,
            "adapters": [{"path": entry.path, "weight": entry.weight} for entry in self.adapters],
            "options": dict(sorted(self.options.items())),
            "as": self.output,
        }
        more = {"features": self.features, "data": self.data, "dtype": self.dtype, "base": self.base}
        values |= {key: value for key, value in more.items() if value}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (folder / RECIPE_NAME).write_text(text, encoding="utf-8")
