"""A merge that is ready to run: a recipe with its adapters open and everything checked.

Adapters are taken in the order of their names, whatever order they are given in: equal sets give equal bytes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch

from osrm_cli.adapters.adapter import Adapter, check_same_architecture, check_task_names
from osrm_cli.adapters.layers import AdapterLayer, natural_sort_key
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import Method, find_method
from osrm_cli.merging.methods.layer_updates import MethodOptions
from osrm_cli.merging.recipe import AdapterEntry, MergeRecipe
from osrm_cli.merging.requirements import check_method, effective_options
from osrm_cli.storage import hub


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        recipe: The effective recipe: every option that counts has its value.
        method: Row of the table of methods.
        options: The method's options.
        adapters: Opened adapters, in the order of their names.
        layers: Every layer that an adapter changes, ``layer.2`` before ``layer.10``.
        learned: Whether the weights in the recipe were learned from data, see ``with_learned_weights``.
    """

    recipe: MergeRecipe
    method: Method
    options: MethodOptions
    adapters: tuple[Adapter, ...]
    layers: tuple[str, ...]
    learned: bool = False

    @classmethod
    def of(cls, recipe: MergeRecipe, weights: Mapping[str, float] | None = None) -> "MergePlan":
        """Open and check everything a recipe names; compute nothing.

        Args:
            recipe: What the user wants.
            weights: Weights by adapter name that replace the recipe's.

        Raises:
            OsrmError: If an adapter cannot be read, they do not belong together, or the method is not given what it
                needs or is given what it does not use.
        """
        method = find_method(recipe.method)
        check_method(method, recipe)
        used = effective_options(method, recipe.options)
        found = sorted(((Adapter.open(entry.path), entry) for entry in recipe.adapters), key=lambda pair: pair[0].name)
        adapters = tuple(adapter for adapter, _ in found)
        check_task_names(adapters)
        check_same_architecture(adapters)
        layers = tuple(sorted({layer for adapter in adapters for layer in adapter.layers}, key=natural_sort_key))
        pinned = [replace(entry, path=hub.pin_revision(entry.path, adapter.folder)) for adapter, entry in found]
        entries = _weighted(pinned, adapters, weights or {})
        for entry, adapter in zip(entries, adapters, strict=True):
            entry.check_patterns(adapter.layers)
        known = {each.name for each in fields(MethodOptions)}
        options = MethodOptions(scale=used["lambda"], **{name: value for name, value in used.items() if name in known})
        effective = replace(
            recipe,
            method=method.name,
            adapters=entries,
            options=used,
            features=recipe.features if "features" in method.needs else None,
            data=recipe.data if method.data_statistic else None,
        )
        return cls(effective, method, options, adapters, layers)

    def with_learned_weights(self, learned: Mapping[str, Mapping[str, float]]) -> "MergePlan":
        """The same merge with a weight for each adapter's every layer, in the place of lambda.

        Args:
            learned: By adapter and layer.
        """
        named = {adapter.name: adapter.layers for adapter in self.adapters}
        entries = tuple(
            replace(entry, weight={f"^{re.escape(layer)}": learned[name][layer] for layer in layers})
            for entry, (name, layers) in zip(self.recipe.adapters, named.items(), strict=True)
        )
        recipe, options = replace(self.recipe, adapters=entries), replace(self.options, scale=1.0)
        return replace(self, recipe=recipe, options=options, learned=True)

    @property
    def reproducing_recipe(self) -> MergeRecipe:
        """The recipe that repeats this merge: where weights were learned, it has them and needs no data."""
        if not self.learned:
            return self.recipe
        kept = {name: value for name, value in self.recipe.options.items() if name in ("rank", "energy")}
        return replace(self.recipe, method="task-arith", options={"lambda": 1.0, **kept}, data=None)

    def weight(self, index: int, layer: str) -> float:
        """The weight of a layer of the adapter at ``index``, as the recipe has it."""
        return self.recipe.adapters[index].weight_of(layer, self._depths[layer])

    @property
    def dtype(self) -> torch.dtype:
        """The type to write: the recipe's, else the widest of the inputs'."""
        if self.recipe.dtype:
            named: torch.dtype = getattr(torch, self.recipe.dtype)
            return named
        widest = self.adapters[0].dtype
        for adapter in self.adapters[1:]:
            widest = torch.promote_types(widest, adapter.dtype)
        return widest

    @cached_property
    def shapes(self) -> dict[str, AdapterLayer]:
        """Each layer as the first adapter that changes it describes it; the others agree on its widths."""
        return {name: layer for adapter in reversed(self.adapters) for name, layer in adapter.layers.items()}

    @property
    def embeddings(self) -> set[str]:
        """Layers that are embeddings."""
        return {name for name, layer in self.shapes.items() if layer.embedding}

    @cached_property
    def _depths(self) -> dict[str, float]:
        """Position of each layer's block in the model: 0 for the first, 1 for the last; 0 outside the blocks."""
        blocks = {
            layer: int(found[0]) if (found := re.findall(r"(?<=\.)\d+(?=\.)", layer)) else 0 for layer in self.layers
        }
        last = max(blocks.values()) or 1
        return {layer: block / last for layer, block in blocks.items()}


def _weighted(
    entries: Sequence[AdapterEntry], adapters: Sequence[Adapter], weights: Mapping[str, float]
) -> tuple[AdapterEntry, ...]:
    names = [adapter.name for adapter in adapters]
    for name in weights:
        if name not in names:
            raise OsrmError(
                f"--weight {name}={weights[name]:g}: no adapter has that name", f"adapters: {', '.join(names)}"
            )
    return tuple(
        replace(entry, weight=weights.get(name, entry.weight)) for entry, name in zip(entries, names, strict=True)
    )
