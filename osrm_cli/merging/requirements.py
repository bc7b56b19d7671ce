"""Options of each merging method: which it takes, their defaults, and what cannot be combined."""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import ValidationError

from osrm_cli.adapters.rank_limits import parse_rank_limit
from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import Method
from osrm_cli.merging.methods.options import DataOptions, MethodOptions
from osrm_cli.merging.recipes.recipe import MergeRecipe

Options = TypeVar("Options", MethodOptions, DataOptions)

# Options of the methods that compute a statistic of data, with their defaults, by ``Method.data_statistic``.
DATA_OPTIONS: Mapping[str, Mapping[str, int | float | str | None]] = {
    "second-moments": {"samples": 100, "seed": 0, "completions": "own"},
    "single-moments": {"samples": 128, "seed": 0, "completions": "own"},
    "cross-moments": {"samples": 128, "seed": 0, "completions": "own"},
    "fisher": {"samples": 100, "seed": 0},
    "weights": {"samples": 100, "seed": 0, "steps": 300},
    "simplex-weights": {"samples": 100, "seed": 0, "steps": 10},
    "matching-weights": {"samples": 128, "seed": 0, "steps": 48, "lr": 1e-2, "completions": "own"},
    "factors": {
        "samples": 128,
        "seed": 0,
        "steps": 180,
        "lr": 2.5e-4,
        "mixed_texts": 7,
        "start": "tsv",
        "target_modules": None,
        "completions": "own",
    },
}
_MAY_BE_UNSET = ("rank", "energy", "primary", "target_modules")
# Every option of any method, by its name on the command line without dashes.
OPTIONS = tuple(
    sorted(
        {"lambda"}
        | {each.name for each in fields(MethodOptions) if each.name != "scale"}
        | {each.name for each in fields(DataOptions)}
    )
)


def check_merge_output(method: Method, recipe: MergeRecipe) -> None:
    """Check that a method's result can take the form asked for.

    Raises:
        OsrmError: If not.
    """
    if recipe.output not in ("adapter", "model"):
        raise OsrmError(f"output form {recipe.output!r}, expected adapter or model")
    if method.is_task_aware and recipe.output == "model":
        raise OsrmError(f"{method.name} makes no single model: each task has its own", "leave out --as model")


def method_option_names(method: Method) -> set[str]:
    """Names of the options that a method takes, as ``OPTIONS`` spells them."""
    # Any result can be recompressed, but the point of 'cat' is that it is not.
    recompressing = set() if method.name == "cat" or method.is_task_aware else {"rank", "energy"}
    return {"lambda", *method.options, *DATA_OPTIONS.get(method.data_statistic or "", {}), *recompressing}


def merge_reads_features(method: Method, recipe: MergeRecipe) -> bool:
    """Whether a merge reads features: the method needs them, or they are given and its result is cut to a rank.

    Args:
        method: Row of the table.
        recipe: Its ``features`` are the folder that the user names; its options have their values.
    """
    if "features" in method.needs or recipe.features is None or method.data_statistic or method.is_task_aware:
        return "features" in method.needs
    is_cut = not method.exact and recipe.output == "adapter"
    return is_cut or "rank" in method.options or bool({"rank", "energy"} & set(recipe.options))


def resolve_method_options(
    method: Method, given: Mapping[str, Any], optional: Collection[str] = ()
) -> tuple[dict[str, Any], MethodOptions]:
    """Every option that counts, with its value: by its name in recipes, and as the method reads them.

    Args:
        method: Row of the table.
        given: Options that are set.
        optional: Names of those that are left out where the method does not use them.

    Raises:
        OsrmError: If another is given that the method does not use, or one has the wrong type or is out of range.
    """
    allowed, given = method_option_names(method), _with_rank(given)
    used = {"lambda": method.default_lambda, **{name: getattr(MethodOptions(), name) for name in method.options}}
    used |= DATA_OPTIONS.get(method.data_statistic or "", {})
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in allowed and name in optional:
            continue
        if name not in allowed:
            takes = ", ".join("--" + option.replace("_", "-") for option in sorted(allowed))
            raise OsrmError(f"method {method.name} does not use --{name.replace('_', '-')}", f"it takes {takes}")
        used[name] = value
    used = {name: value for name, value in used.items() if value is not None or name not in _MAY_BE_UNSET}
    names = {each.name for each in fields(MethodOptions)}
    values = {"scale": used["lambda"], **{name: value for name, value in used.items() if name in names}}
    options = _check_method_options(MethodOptions, values, given)
    of_data = DATA_OPTIONS.get(method.data_statistic or "", {}).keys() & used.keys()
    _check_method_options(DataOptions, {name: used[name] for name in of_data}, given)
    return used, options


def _check_method_options(schema: type[Options], values: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    try:
        return schema(**values)
    except ValidationError as error:
        key = str(error.errors(include_input=False)[0]["loc"][0])
        name = "lambda" if key == "scale" else next((name for name in given if name.replace("-", "_") == key), key)
        expected = schema.__pydantic_fields__[key].description  # type: ignore[attr-defined]  # of pydantic's dataclasses
        raise OsrmError(f"option '{name}' is {reprlib.repr(values[key])}, expected {expected}") from None


def _with_rank(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with ``rank`` as a number, or as ``energy`` where it is ``auto:SHARE``.

    Raises:
        OsrmError: If it is neither, or there is an ``energy`` beside.
    """
    rank = given.get("rank")
    if not isinstance(rank, str):
        return dict(given)
    others = {name: value for name, value in given.items() if name != "rank"}
    chosen = parse_rank_limit(rank)
    if "energy" in chosen and others.get("energy") is not None:
        raise OsrmError("--rank auto and --energy are the same", "leave out one of them")
    return others | chosen
