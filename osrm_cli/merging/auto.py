"""``--method auto``: the method that did best in our studies with what is at hand, and why, in one line."""

from collections.abc import Sequence
from dataclasses import replace

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.adapters.task_data import adapter_data_source
from osrm_cli.errors import OsrmError
from osrm_cli.merging.recipes.recipe import AUTO, MergeRecipe
from osrm_cli.models.full.sources import is_full_model
from osrm_cli.tasks.loading import list_splits


def choose_merging_method(recipe: MergeRecipe) -> tuple[MergeRecipe, str]:
    """A recipe with a method in the place of ``auto``, and the reason.

    Texts decide: with them a model of classes is trained to do as the single ones do, and a writer's layers are fitted
    to the single ones' in closed form. Of writers features are the next best: RegMean, which reads them, keeps more
    than any method that does not; of these KnOTS-TIES keeps more than TIES at their defaults, whatever the start. Of
    classes RegMean is not above TIES; but where features are given, they cut the result of TIES to its rank.

    Args:
        recipe: Its ``data`` is what the user gives; data on the hub, which would have to be fetched, counts only so.

    Raises:
        OsrmError: If an adapter cannot be read.
    """
    if any(is_full_model(entry.path) for entry in recipe.adapters):
        return replace(recipe, method="ties"), "the best of those that read models alone"
    adapters = [open_adapter(entry.path) for entry in recipe.adapters]
    if len(adapters) == 1:
        return replace(recipe, method="task-arith"), "one adapter is itself"
    write = all(adapter.is_text for adapter in adapters)
    learned = "sequential" if write else "distill"
    if lack := _find_unmet_method_need(adapters, recipe.data):
        if write:
            method, read = ("regmean", "features") if recipe.features else ("knots-ties", "adapters alone")
            return replace(recipe, method=method), f"the best of those that read {read}; for {learned} {lack}"
        cut = ", cut to a rank by the features" if recipe.features and recipe.output == "adapter" else ""
        return replace(recipe, method="ties"), f"the best of those that read adapters alone{cut}; for {learned} {lack}"
    return replace(recipe, method=learned), "there are texts of every task, from which the most is kept"


def _find_unmet_method_need(adapters: Sequence[Adapter], data: str | None) -> str | None:
    """What a method that reads texts lacks; ``None`` if nothing."""
    for adapter in adapters:
        if any(layer.embedding for layer in adapter.layers.values()):
            return f"{adapter.source} must not adapt an embedding"
        if not adapter.is_text and not adapter.head_tensors():
            return f"{adapter.source} has no head"
        try:
            source = adapter_data_source(adapter, data, AUTO)
            found = (data == "hub" or source != "hub") and {"train", "train_matched"} & set(
                list_splits(adapter.name, source)
            )
        except OsrmError as error:
            return f"there are no texts: {error}"
        if not found:
            return f"there are no texts of {adapter.name} in {source}"
    return None
