"""What to merge and how: the recipe, the arguments beside it, and what follows of full models and of ``auto``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import find_method
from osrm_cli.merging.recipes.recipe import AUTO, MergeRecipe, RecipeEntry
from osrm_cli.models.base_model import identify_base_model
from osrm_cli.models.full.sources import is_full_model
from osrm_cli.storage.records import BaseModelId


@dataclass(frozen=True)
class MergeChoice:
    """A merge as it was asked for, whole.

    Attributes:
        recipe: What to merge and how; its method is never ``auto``.
        base: The base model that full models, or adapters of several bases, are merged on; else ``None``.
        must_use: Names of the options and inputs that are an error where the merge does not use them; all by default.
        notes: What was chosen, and why.
    """

    recipe: MergeRecipe
    base: BaseModelId | None
    must_use: Collection[str] | None
    notes: Sequence[str]

    def must_be_used(self, name: str) -> bool:
        """Whether it is an error not to use an option or input that is given."""
        return _is_named_merge_argument(name, self.must_use)


def choose_merge(
    adapters: Sequence[Path | str],
    recipe: Path | str | None,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    base: tuple[str | None, str | None],
    must_use: Collection[str] | None,
) -> MergeChoice:
    """Put a recipe and the arguments beside it together, see ``merge_adapters``.

    Args:
        adapters: Sources, where there is no recipe.
        recipe: YAML file.
        given: Fields of the recipe by the argument's name; ``None`` says nothing.
        options: Options of the method.
        base: Name and revision of the base model.
        must_use: Names of the arguments that go before the recipe's, and must be used; all by default.

    Raises:
        OsrmError: If the recipe cannot be read, or full models are to become an adapter.
    """
    model, revision = base
    first = None if recipe is None else must_use
    chosen = _recipe_with_merge_arguments(_recipe_of_file_or_adapters(adapters, recipe), given, options, first)
    name = model if model and _is_named_merge_argument("model", first) else chosen.base or model
    base_of_all, notes = None, []
    if name and (source := _find_full_model_in_recipe(chosen)):
        if given["form"] == "adapter":
            hint = "leave out --as adapter, or use osrm extract before"
            raise OsrmError(f"{source} is a full model: the result is a model", hint)
        chosen, base_of_all = replace(chosen, output="model", base=name), identify_base_model(name, revision)
        notes.append(f"{source} is a full model: the result is a model, as with --as model")
    if chosen.method == AUTO:
        from osrm_cli.merging.auto import choose_merging_method  # it reads tasks

        chosen, reason = choose_merging_method(chosen)
        notes.append(f"method {chosen.method}: {reason}")
        must_use = ()
    if name and base_of_all is None and find_method(chosen.method).takes_any_base:
        chosen, base_of_all = replace(chosen, base=name), identify_base_model(name, revision)
    return MergeChoice(chosen, base_of_all, must_use, notes)


def _recipe_of_file_or_adapters(adapters: Sequence[Path | str], path: Path | str | None) -> MergeRecipe:
    """The recipe in the file, or one that names the adapters alone."""
    if path and adapters:
        raise OsrmError("adapters are given twice: on the command line and by --recipe", "leave out one of them")
    if not path and not adapters:
        raise OsrmError("no adapters to merge", "osrm merge adapters/* --method task-arith --lambda 0.3")
    if path:
        from osrm_cli.merging.recipes.recipe_file import read_recipe  # schemas take a while to build

        return read_recipe(Path(path))
    return MergeRecipe("task-arith", tuple(RecipeEntry(str(adapter)) for adapter in adapters))


def _recipe_with_merge_arguments(
    recipe: MergeRecipe, given: Mapping[str, Any], options: Mapping[str, Any], first: Collection[str] | None
) -> MergeRecipe:
    """A recipe with what is given beside it.

    Args:
        recipe: The recipe.
        given: Arguments of ``merge_adapters``; None says nothing.
        options: Options of its method.
        first: Names of those that go before the recipe's own, all by default; others fill gaps.
    """
    held = {name.replace("-", "_") for name in recipe.options}
    held |= {"rank", "energy"} if held & {"rank", "energy"} else set()
    fields = {("output" if name == "form" else name): (name, value) for name, value in given.items() if value}
    changes: dict[str, Any] = {
        field: value
        for field, (name, value) in fields.items()
        if _is_named_merge_argument(name, first) or getattr(recipe, field) is None
    }
    kept = {name: value for name, value in options.items() if _is_named_merge_argument(name, first) or name not in held}
    return replace(recipe, **changes, options={**recipe.options, **kept})


def _find_full_model_in_recipe(recipe: MergeRecipe) -> str | None:
    """The first source of a recipe that is a full model."""
    return next((entry.path for entry in recipe.adapters if is_full_model(entry.path)), None)


def _is_named_merge_argument(name: str, named: Collection[str] | None) -> bool:
    """Whether an argument is among those named; all are where none is."""
    return named is None or name in named
