"""What a merge has to be given: options that its method uses, features that it needs, adapters with different names."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.adapter_match import check_layers
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.merging.methods import Method
from osrm_cli.merging.methods.layer_updates import MethodOptions
from osrm_cli.merging.recipe import MergeRecipe
from osrm_cli.storage import provenance

# What passes over the model take beside the rule's own options, by ``Method.data_statistic``.
DATA_OPTIONS: Mapping[str, Mapping[str, int]] = {
    "second-moments": {"samples": 100, "seed": 0},
    "fisher": {"samples": 100, "seed": 0},
    "weights": {"samples": 100, "seed": 0, "steps": 300},
}
# Every option of any method, by its name on the command line without dashes.
OPTIONS = tuple(
    sorted(
        {
            "lambda",
            *(each.name for each in fields(MethodOptions) if each.name != "scale"),
            *(name for row in DATA_OPTIONS.values() for name in row),
        }
    )
)
_WHOLE = ("rank", "seed", "agreement", "samples", "steps")


def check_method(method: Method, recipe: MergeRecipe) -> None:
    """Check that a method makes sense as it is put together, and that its result can take the form asked for.

    Raises:
        OsrmError: If not.
    """
    if method.data_statistic == "weights" and method.wrappers:
        raise OsrmError(f"{method.name}: the weights are learned for the plain sum", "leave out what goes before it")
    if method.is_task_aware and recipe.output == "model":
        raise OsrmError(f"{method.name} makes no single model: each task has its own", "leave out --as model")


def used_options(method: Method) -> set[str]:
    """Names of the options that a method takes, as ``OPTIONS`` spells them."""
    # Any result can be recompressed, but the point of 'cat' is that it is not.
    recompressing = set() if method.name == "cat" or method.is_task_aware else {"rank", "energy"}
    return {"lambda", *method.options, *DATA_OPTIONS.get(method.data_statistic or "", {}), *recompressing}


def effective_options(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option that counts, with its value.

    Raises:
        OsrmError: If one is given that the method does not use, or that has the wrong type.
    """
    allowed = used_options(method)
    used = {"lambda": method.default_lambda, **{name: getattr(MethodOptions(), name) for name in method.options}}
    used |= DATA_OPTIONS.get(method.data_statistic or "", {})
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in allowed:
            takes = ", ".join("--" + option.replace("_", "-") for option in sorted(allowed))
            raise OsrmError(f"method {method.name} does not use --{name.replace('_', '-')}", f"it takes {takes}")
        expected = str if name == "aggregate" else int if name in _WHOLE else int | float
        if not isinstance(value, expected) or isinstance(value, bool):
            raise OsrmError(f"option '{key}' is {value!r}, expected {getattr(expected, '__name__', 'a number')}")
        if name in ("samples", "steps") and int(value) < 1:
            raise OsrmError(f"option '{key}' is {value}, expected 1 or more")
        used[name] = value
    return {name: value for name, value in used.items() if value is not None}


def open_features(recipe: MergeRecipe, method: Method, adapters: Sequence[Adapter]) -> list[FeaturesFile]:
    """Open the features files that a method reads, one per adapter.

    Raises:
        OsrmError: If one is missing, has no second moments, or does not fit the adapters.
    """
    files: dict[str, FeaturesFile] = {}
    for adapter in adapters:
        path = Path(recipe.features or "features") / f"{adapter.name}.safetensors"
        if not path.is_file() and not shards.find_shards(path):
            raise OsrmError(
                f"method {method.name} needs second moments of every task's features, {path} is missing",
                f"osrm collect --task {adapter.name} --statistic {SECOND_MOMENT}",
            )
        files[adapter.name] = FeaturesFile.open(path)
        check_layers(adapter, files[adapter.name])
    FeatureSet(files).select((SECOND_MOMENT,), f"method {method.name}")
    bases = {file.path: file.base for file in files.values()}
    provenance.check_same_base_model(bases | {adapter.folder: adapter.base for adapter in adapters if adapter.base})
    return list(files.values())
