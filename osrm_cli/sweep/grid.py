"""The grid of a sweep: its merges, and which of them are multiples of one another."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.feature_moments import open_layer_data
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.methods import Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerResult, MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe
from osrm_cli.merging.requirements import OPTIONS, method_option_names

Value = int | float | str

MAX_VALUES = 1000  # values of one option
_WORDS = {  # options that take words
    "aggregate": ("mean", "sum"),
    "start": ("task-arith", "tsv", "ties", "sequential"),
    "completions": ("own", "given"),
}
_DECIMAL_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class SweptDelta:
    """A merged update, layer by layer.

    Attributes:
        results: Result of each layer.
        factor: Factor on the result.
        dtype: The type in which a merge would write it.
    """

    results: Mapping[str, LayerResult]
    factor: float
    dtype: torch.dtype

    @property
    def by_task(self) -> bool:
        """Whether the tasks have different updates."""
        return any(isinstance(result, MaskedDelta) for result in self.results.values())

    def delta(self, layer: str, index: int) -> torch.Tensor:
        """One layer's update for the task of the adapter at ``index``, ``(d_out, d_in)``."""
        result = self.results[layer]
        if isinstance(result, LowRank):
            return result.scaled(self.factor).to(self.dtype).dense()
        if isinstance(result, MaskedDelta):
            return replace(result, unified=(self.factor * result.unified).to(self.dtype)).for_task(index)
        return result.scaled(self.factor).dense()


@dataclass(frozen=True)
class MergeFamily:
    """Points that share one merge.

    Attributes:
        plan: The shared merge.
        layer_data: Its method's data from features files.
        lambdas: Lambda of each point.
    """

    plan: MergePlan
    layer_data: LayerData
    lambdas: tuple[float, ...]

    def points(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Each point's options, as its own merge would record them, and the factor on the shared result."""
        for value in self.lambdas:
            yield {**self.plan.recipe.options, "lambda": value}, value if lambda_is_a_factor(self.plan.method) else 1.0


def lambda_is_a_factor(method: Method) -> bool:
    """Whether lambda is only a factor on the result.

    It is, unless the activations of layers merged so far depend on it, or what is learned is initialized with it.
    """
    return method.data_statistic in (None, "fisher")


def expand_grid(
    base_recipe: MergeRecipe,
    methods: Sequence[str],
    grid: Mapping[str, Sequence[Value]],
    shared_options: Mapping[str, Sequence[Value]],
) -> list[MergeFamily]:
    """Open and check every merge of a grid; merge nothing.

    Args:
        base_recipe: Settings that all merges share.
        methods: Names of methods.
        grid: Values by option, as a recipe spells options; a method uses those that it has.
        shared_options: Further values by option, which need not be used by any method.

    Raises:
        OsrmError: If a method is unknown, no method uses an option, or a merge cannot be done.
    """
    method_rows = list(dict.fromkeys(map(find_method, methods)))
    for option in grid:
        if not any(option in method_option_names(method) for method in method_rows):
            flag, names = option.replace("_", "-"), ", ".join(method.name for method in method_rows)
            raise OsrmError(f"none of {names} uses --{flag}", "osrm merge --help says which method takes it")
    families = []
    for method in method_rows:
        used_grid = {
            option: values
            for option, values in {**shared_options, **grid}.items()
            if option in method_option_names(method)
        }
        lambdas = tuple(float(value) for value in used_grid.pop("lambda", (method.default_lambda,)))
        for values in itertools.product(*used_grid.values()):
            recipe = replace(base_recipe, method=method.name, options=dict(zip(used_grid, values, strict=True)))
            if method.is_task_aware:  # has one form only
                recipe = replace(recipe, output="adapter")
            for shared_lambdas in [lambdas] if lambda_is_a_factor(method) else [(value,) for value in lambdas]:
                options = {**recipe.options, "lambda": 1.0 if lambda_is_a_factor(method) else shared_lambdas[0]}
                plan = MergePlan.of(replace(recipe, options=options))
                families.append(MergeFamily(plan, open_layer_data(plan), shared_lambdas))
    return families


def parse_grid_option(text: str) -> tuple[str, list[Value]]:
    """Parse ``NAME=VALUES``: an option of ``osrm merge`` with its values.

    Raises:
        OsrmError: If the option is unknown, or its values cannot be parsed.
    """
    name, _, values = text.partition("=")
    option = name.strip().replace("-", "_")
    if option not in OPTIONS:
        options = ", ".join(known_option.replace("_", "-") for known_option in OPTIONS)
        raise OsrmError(f"--option {text}: '{name}' is not an option of a method", f"options: {options}")
    if option not in _WORDS:
        return option, parse_grid_values(f"--option {text}", [values])
    words: list[Value] = list(values.split(","))
    if any(word not in _WORDS[option] for word in words):
        raise OsrmError(
            f"--option {text}, expected some of {', '.join(_WORDS[option])}",
            f"for example --option {option}={','.join(_WORDS[option][:2])}",
        )
    return option, words


def parse_grid_values(flag: str, texts: Sequence[str]) -> list[Value]:
    """Parse numbers from lists such as ``0.1,0.5`` and ranges such as ``0.1:1.0:0.1``, both ends included; each once.

    Args:
        flag: The option as the user typed it, for the error.
        texts: Lists, ranges, or both with commas between.

    Raises:
        OsrmError: If an entry is neither a number nor a range, or there are no values or too many.
    """
    numbers: dict[Value, None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        fields = part.split(":")
        if len(fields) not in (1, 3) or not all(_DECIMAL_PATTERN.fullmatch(field.strip()) for field in fields):
            raise OsrmError(
                f"{flag}: '{part}' is neither a number nor START:STOP:STEP", "for example 0.1:1.0:0.1 or 0.3,1"
            )
        # Decimals, so that 0.1 + 0.2 is 0.3.
        first, *bounds = (Decimal(field.strip()) for field in fields)
        stop, step = bounds or (first, Decimal(1))
        if step <= 0 or stop < first or (stop - first) / step >= MAX_VALUES:
            raise OsrmError(
                f"{flag}: '{part}' contains no values, or more than {MAX_VALUES}", "START is the smallest value"
            )
        are_integers = all(re.fullmatch(r"[+-]?\d+", field.strip()) for field in fields)
        steps = range(int((stop - first) / step) + 1)
        numbers |= dict.fromkeys((int if are_integers else float)(first + step * index) for index in steps)
    if not all(math.isfinite(value) for value in numbers if not isinstance(value, str)):
        raise OsrmError(f"{flag} contains a number that is too large")
    return list(numbers)
