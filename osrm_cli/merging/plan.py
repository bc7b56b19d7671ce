"""A merge that is ready to run: a recipe with its adapters open and everything checked.

Adapters are taken in the order of their names, whatever order they are given in: equal sets give equal bytes.
"""

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from osrm_cli.adapters.adapter import (
    Adapter,
    align_adapter_layers,
    check_adapter_names,
    check_adapters_share_base,
    combine_adapter_layers,
)
from osrm_cli.adapters.layers import AdapterLayer, layer_name_sort_key
from osrm_cli.adapters.rest import AdapterWithRest
from osrm_cli.adapters.trained_rows import TrainedRows
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.foreign import ForeignAdapter, separate_foreign_adapters
from osrm_cli.merging.methods import Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.merging.requirements import (
    check_merge_output,
    merge_reads_features,
    method_option_names,
    resolve_method_options,
)
from osrm_cli.models.full.sources import open_adapter_or_full_model
from osrm_cli.storage.provenance import short_model_name
from osrm_cli.storage.records import BaseModelId

Heads = Mapping[str, Mapping[str, torch.Tensor]]  # by task and name in the base model; empty without a head


@dataclass(frozen=True)
class MergedModules:
    """What the adapters hold beside their updates.

    Attributes:
        heads: Each task's head.
        values: What tensors of the base model are, before rows are replaced and updates added, by name: the same in
            every adapter.
        rows: Rows of base-model modules that were trained, by module: the same in every adapter.
        trained: Which of ``values`` are of modules that were trained as a whole; the others are copies of the base
            model's weights below adapted embeddings, see ``Adapter.base_copies``.
    """

    heads: Heads
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rows: Mapping[str, TrainedRows] = field(default_factory=dict)
    trained: Collection[str] = ()

    @property
    def names(self) -> list[str]:
        """What is carried over as it is."""
        rows = [f"{module} (rows {', '.join(map(str, own.indices))})" for module, own in self.rows.items()]
        return sorted([*self.trained, *rows])


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        recipe: The effective recipe: every option that counts has its value.
        method: Row of the table of methods.
        options: The method's options.
        adapters: Opened adapters, in the order of their names.
        shapes: Every layer that an adapter changes, ``layer.2`` before ``layer.10``, as the first adapter that changes
            it describes it; the others agree on its widths.
        dtype: The type to write: the recipe's, else the widest of the inputs'.
        bases: Base models with their digests by adapter folder, where this program recorded them.
        reads_features: Whether second moments are read, for the method or to cut its result to a rank by what the
            inputs see.
        has_full_models: Whether an update is a full model's difference, so that the result is a model.
        learned: Whether the weights in the recipe were learned from data, see ``with_learned_weights``.
    """

    recipe: MergeRecipe
    method: Method
    options: MethodOptions
    adapters: tuple[Adapter, ...]
    shapes: Mapping[str, AdapterLayer]
    dtype: torch.dtype
    bases: Mapping[Path, BaseModelId]
    reads_features: bool
    has_full_models: bool
    learned: bool = False

    @classmethod
    def of(
        cls,
        recipe: MergeRecipe,
        weights: Mapping[str, float] | None = None,
        optional: Collection[str] = (),
        base: BaseModelId | None = None,
    ) -> "MergePlan":
        """Open and check everything a recipe names but its data; compute nothing.

        Args:
            recipe: What the user wants.
            weights: Weights by adapter name that replace the recipe's.
            optional: Names of the options that are left out where the method does not use them.
            base: The base model of full models; of a method that learns from adapters of any base model, that of the
                result.

        Raises:
            OsrmError: If an adapter cannot be read, they do not belong together, or the method is given what it does
                not use.
        """
        method = find_method(recipe.method)
        check_merge_output(method, recipe)
        used, options = resolve_method_options(method, recipe.options, optional)
        sources = ((_open_merge_source(entry.path, recipe.output, base), entry) for entry in recipe.adapters)
        opened = sorted(sources, key=lambda pair: pair[0].name)
        given = [adapter for adapter, _ in opened]
        adapters = tuple(
            align_adapter_layers(separate_foreign_adapters(given, base) if base and method.takes_any_base else given)
        )
        check_adapter_names(adapters)
        _check_method_takes_full_models(method, adapters)
        check_adapters_share_base(adapters)
        pinned = [
            replace(entry, path=adapter.pinned_source) for adapter, (_, entry) in zip(adapters, opened, strict=True)
        ]
        entries = _plan_merge_weights(pinned, adapters, weights or {})
        entries = tuple(
            entry.with_patterns_of(adapter.layers) for entry, adapter in zip(entries, adapters, strict=True)
        )
        _check_recipe_bases(entries, adapters)
        _check_foreign_weights(entries, adapters)
        reads = merge_reads_features(method, replace(recipe, options=used))
        effective = replace(
            recipe,
            method=method.name,
            adapters=entries,
            options=used,
            features=recipe.features if reads else None,
            data=recipe.data if method.data_statistic else None,
        )
        widest = functools.reduce(torch.promote_types, (adapter.dtype for adapter in adapters))
        dtype = getattr(torch, recipe.dtype) if recipe.dtype else widest
        bases = {adapter.folder: base for adapter in adapters if (base := adapter.base)}
        is_dense = any(adapter.is_dense for adapter in adapters)
        return cls(
            effective, method, options, adapters, combine_adapter_layers(adapters), dtype, bases, reads, is_dense
        )

    def with_method(self, name: str) -> "MergePlan | None":
        """Another method's merge into an adapter, of the same adapters and under the options that it has too.

        Args:
            name: The other method.

        Returns:
            Its plan, without the adapters of other base models; ``None`` if there are no others.
        """
        pairs = zip(self.recipe.adapters, self.adapters, strict=True)
        entries = tuple(entry for entry, adapter in pairs if not isinstance(adapter, ForeignAdapter))
        if not entries:
            return None
        shared = {
            key: value for key, value in self.recipe.options.items() if key in method_option_names(find_method(name))
        }
        return MergePlan.of(replace(self.recipe, method=name, adapters=entries, options=shared, output="adapter"))

    def with_target_modules(self, base: Path) -> "MergePlan":
        """The same merge with the further layers of the base model that the recipe names for it to learn.

        Args:
            base: The base model's folder.

        Raises:
            OsrmError: If it has no such layer.
        """
        names = self.recipe.options.get("target_modules")
        if not names:
            return self
        from osrm_cli.models.target_modules import describe_target_layers  # it imports transformers

        further, _ = describe_target_layers(base, self.adapters[0].is_text, names)
        shapes = {**further, **self.shapes}
        return replace(self, shapes={name: shapes[name] for name in sorted(shapes, key=layer_name_sort_key)})

    def with_learned_weights(self, learned: Mapping[str, Mapping[str, float]]) -> "MergePlan":
        """The same merge with a weight for each adapter's every layer, in the place of lambda.

        Args:
            learned: By adapter and layer.
        """
        layers_of = {adapter.name: adapter.layers for adapter in self.adapters}
        entries = tuple(
            replace(entry, weight={f"^{re.escape(layer)}": learned[name][layer] for layer in layers})
            for entry, (name, layers) in zip(self.recipe.adapters, layers_of.items(), strict=True)
        )
        recipe, options = replace(self.recipe, adapters=entries), replace(self.options, scale=1.0)
        return replace(self, recipe=recipe, options=options, learned=True)

    @cached_property
    def foreign(self) -> tuple[ForeignAdapter, ...]:
        """Adapters of other base models, from which the merge learns."""
        return tuple(adapter for adapter in self.adapters if isinstance(adapter, ForeignAdapter))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The names of ``shapes``."""
        return tuple(self.shapes)

    def read_heads(self) -> Heads:
        """Each task's head.

        Raises:
            OsrmError: If one holds NaN or infinity.
        """
        return {adapter.name: adapter.head_tensors() for adapter in self.adapters}

    def read_saved_modules(self) -> MergedModules:
        """Each task's head, and the base model's modules that the adapters have trained as a whole.

        Raises:
            OsrmError: If one holds NaN or infinity, or two adapters differ in a module.
        """
        heads = self.read_heads()
        first, *others = self.adapters
        values = _list_whole_values_to_merge(first.module_tensors(), first.trained_rows())
        for other in others:
            _check_same_trained_values(first, values, other)
        if values and self.method.is_task_aware:
            raise OsrmError(
                f"{first.source} trained {next(iter(values))} as a whole, which {self.method.name} cannot hold",
                "use another method, see osrm merge --list",
            )
        copies = {} if self.method.is_task_aware else _shared_base_copies(self.adapters)
        trained = first.module_tensors()
        return MergedModules(heads, {**copies, **trained}, first.trained_rows(), tuple(trained))

    def write_recipe(self, folder: Path) -> None:
        """Write ``merge.yaml``, which repeats this merge: where weights were learned, it has them and needs no data."""
        recipe = self.recipe
        if self.learned:
            truncation = {name: value for name, value in recipe.options.items() if name in ("rank", "energy")}
            recipe = replace(recipe, method="task-arith", options={"lambda": 1.0, **truncation}, data=None)
        recipe.write(folder)

    def weight(self, index: int, layer: str) -> float:
        """The weight of a layer of the adapter at ``index``, as the recipe has it."""
        return self.recipe.adapters[index].weight_of(layer, self._depths[layer])

    def read_updates(
        self, layer: str, data: Mapping[str, tuple[torch.Tensor, ...]], device: torch.device | str = "cpu"
    ) -> LayerUpdates:
        """One layer of every adapter; an adapter that does not change it counts with an update of rank zero.

        Args:
            layer: Full name.
            data: What the method is given beside, see ``LayerData``.
            device: Where the tensors go.
        """
        shape = self.shapes[layer]
        deltas = []
        for adapter in self.adapters:
            if layer in adapter.layers:
                dtype = torch.promote_types(adapter.dtype, torch.float32)
                deltas.append(adapter.update(layer, dtype, device))
            else:
                empty = torch.zeros(0, device=device)
                deltas.append(LowRank(empty.reshape(shape.d_out, 0), empty.reshape(0, shape.d_in)))
        names = tuple(adapter.name for adapter in self.adapters)
        weights = tuple(self.weight(index, layer) for index in range(len(names)))
        moved = {name: tuple(tensor.to(device) for tensor in tensors) for name, tensors in data.items()}
        return LayerUpdates(layer, names, tuple(deltas), weights, **moved)

    @cached_property
    def _depths(self) -> dict[str, float]:
        """Position of each layer's block in the model: 0 for the first, 1 for the last; 0 outside the blocks."""
        blocks = {
            layer: int(number[0]) if (number := re.search(r"(?<=\.)\d+(?=\.)", layer)) else 0 for layer in self.layers
        }
        last = max(blocks.values()) or 1
        return {layer: block / last for layer, block in blocks.items()}


def _open_merge_source(source: str, output: str, base: BaseModelId | None) -> Adapter:
    """An adapter, for a model with what it does not hold; or a full model, where its base model is known."""
    adapter = open_adapter_or_full_model(source, base)
    return AdapterWithRest.of(adapter) if output == "model" else adapter


def _check_method_takes_full_models(method: Method, adapters: Sequence[Adapter]) -> None:
    source = next((adapter.source for adapter in adapters if adapter.is_dense), None)
    if source and not method.takes_full_models:
        raise OsrmError(
            f"method {method.name} takes adapters alone, {source} is a full model or has a rest",
            "osrm extract makes an adapter of a full model; or use ties, tsv, regmean or another method",
        )


def _check_recipe_bases(entries: Sequence[RecipeEntry], adapters: Sequence[Adapter]) -> None:
    """Check that each adapter belongs to the base model that its recipe names, as far as names can tell."""
    for entry, adapter in zip(entries, adapters, strict=True):
        known = adapter.base.name if adapter.base else adapter.config.base_model
        if entry.base and known and short_model_name(entry.base) != short_model_name(known):
            raise OsrmError(
                f"{adapter.source} belongs to base model {known}, the recipe has it on {entry.base}",
                "an update counts on its own base model only; if they are the same, correct the recipe",
            )


def _check_foreign_weights(entries: Sequence[RecipeEntry], adapters: Sequence[Adapter]) -> None:
    for entry, adapter in zip(entries, adapters, strict=True):
        if isinstance(adapter, ForeignAdapter) and entry.weight != 1.0:
            raise OsrmError(
                f"{adapter.source} has a weight, but belongs to another base model: it has no update to scale",
                "leave out its weight",
            )


def _check_same_trained_values(first: Adapter, values: Mapping[str, torch.Tensor], other: Adapter) -> None:
    """Check that two adapters have trained the same modules and rows to the same values, which have no sum."""
    others = _list_whole_values_to_merge(other.module_tensors(), other.trained_rows())
    for name in sorted(values.keys() | others.keys(), key=layer_name_sort_key):
        if name not in values or name not in others or not torch.equal(values[name], others[name]):
            raise OsrmError(
                f"{first.source} and {other.source} differ in {name}, which is stored as a whole",
                "merge adapters that share it, or train them without modules_to_save and trainable_token_indices",
            )


def _shared_base_copies(adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """The adapters' copies of the base model's embeddings, which have to be the same: updates count on them alone."""
    copies: dict[str, torch.Tensor] = {}
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        for name, tensor in adapter.base_copies().items():
            owner = owners.setdefault(name, adapter)
            if not torch.equal(copies.setdefault(name, tensor), tensor):
                raise OsrmError(
                    f"{owner.source} and {adapter.source} adapt {name}, but from different values",
                    "use adapters whose added tokens began with the same values",
                )
    return copies


def _plan_merge_weights(
    entries: Sequence[RecipeEntry], adapters: Sequence[Adapter], weights: Mapping[str, float]
) -> tuple[RecipeEntry, ...]:
    names = [adapter.name for adapter in adapters]
    for name in weights:
        if name not in names:
            raise OsrmError(
                f"--weight {name}={weights[name]:g}: no adapter has that name", f"adapters: {', '.join(names)}"
            )
    return tuple(
        replace(entry, weight=weights.get(name, entry.weight)) for entry, name in zip(entries, names, strict=True)
    )


def _list_whole_values_to_merge(
    modules: Mapping[str, torch.Tensor], rows: Mapping[str, TrainedRows]
) -> dict[str, torch.Tensor]:
    """Values that an adapter holds in the place of the base model's, each row of an embedding apart.

    Args:
        modules: Tensors of the modules that it holds as a whole.
        rows: Its trained rows, by the name of the module.
    """
    apart = {
        f"row {index} of {module}": row
        for module, own in rows.items()
        for index, row in zip(own.indices, own.values, strict=True)
    }
    return {**modules, **apart}
