"""The grid of a sweep: which merges it holds, and which of them are multiples of one another."""

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
from osrm_cli.merging.recipe import MergeRecipe
from osrm_cli.merging.requirements import OPTIONS, used_options

Value = int | float | str

MAX_VALUES = 1000  # values of one option
_AGGREGATES = ("mean", "sum")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class ScaledDelta:
    """A merged update, layer by layer as dense tensors.

    Attributes:
        results: Each layer's result.
        factor: What it is multiplied by.
        dtype: The type that a merge would write it in.
    """

    results: Mapping[str, LayerResult]
    factor: float
    dtype: torch.dtype

    @property
    def by_task(self) -> bool:
        """Whether each task has an update of its own."""
        return any(isinstance(result, MaskedDelta) for result in self.results.values())

    def delta(self, layer: str, index: int) -> torch.Tensor:
        """One layer's update for the task of the adapter at ``index``, ``(d_out, d_in)``."""
        result = self.results[layer]
        if isinstance(result, LowRank):
            return result.scaled(self.factor).to(self.dtype).dense()
        if isinstance(result, MaskedDelta):
            return replace(result, unified=(self.factor * result.unified).to(self.dtype)).for_task(index)
        return self.factor * result


@dataclass(frozen=True)
class MergeFamily:
    """Points that share one merge.

    Attributes:
        plan: The merge that is carried out.
        layer_data: What its method reads of features files.
        lambdas: Each point's lambda.
    """

    plan: MergePlan
    layer_data: LayerData
    lambdas: tuple[float, ...]

    def points(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Each point's options, as its own merge would record them, and the factor on the shared result."""
        for value in self.lambdas:
            yield {**self.plan.recipe.options, "lambda": value}, value if lambda_is_a_factor(self.plan.method) else 1.0


def lambda_is_a_factor(method: Method) -> bool:
    """Whether lambda is no more than a factor on the result.

    It is for every rule; but features of the layers merged so far depend on it, and learned weights start from it.
    """
    return method.data_statistic not in ("second-moments", "weights")


def expand_grid(
    asked: MergeRecipe, methods: Sequence[str], grid: Mapping[str, Sequence[Value]], more: Mapping[str, Sequence[Value]]
) -> list[MergeFamily]:
    """Open and check every merge of a grid; compute nothing.

    Args:
        asked: What all of them have in common.
        methods: Names of methods.
        grid: Values by option, as a recipe spells options; a method takes those that it uses.
        more: The same, but it does no harm if no method uses them.

    Raises:
        OsrmError: If a method is unknown, no method uses an option, or a merge cannot be done.
    """
    rows = list(dict.fromkeys(map(find_method, methods)))
    for option in grid:
        if not any(option in used_options(row) for row in rows):
            spelled, given = option.replace("_", "-"), ", ".join(row.name for row in rows)
            raise OsrmError(f"none of {given} uses --{spelled}", "osrm merge --help says which method takes it")
    found = []
    for row in rows:
        own = {option: values for option, values in {**more, **grid}.items() if option in used_options(row)}
        lambdas = tuple(float(value) for value in own.pop("lambda", (row.default_lambda,)))
        for values in itertools.product(*own.values()):
            recipe = replace(asked, method=row.name, options=dict(zip(own, values, strict=True)))
            if row.is_task_aware:  # has one form only
                recipe = replace(recipe, output="adapter")
            for shared in [lambdas] if lambda_is_a_factor(row) else [(value,) for value in lambdas]:
                options = {**recipe.options, "lambda": 1.0 if lambda_is_a_factor(row) else shared[0]}
                plan = MergePlan.of(replace(recipe, options=options))
                found.append(MergeFamily(plan, open_layer_data(plan), shared))
    return found


def parse_option(text: str) -> tuple[str, list[Value]]:
    """An option of merge with its values, from ``NAME=VALUES``.

    Raises:
        OsrmError: If there is no such option, or its values cannot be read.
    """
    name, _, values = text.partition("=")
    option = name.strip().replace("-", "_")
    if option not in OPTIONS:
        known = ", ".join(each.replace("_", "-") for each in OPTIONS)
        raise OsrmError(f"--option {text}: '{name}' is no option of a method", f"options: {known}")
    if option != "aggregate":
        return option, parse_values(f"--option {text}", [values])
    words: list[Value] = list(values.split(","))
    if any(word not in _AGGREGATES for word in words):
        raise OsrmError(f"--option {text}, expected mean, sum or both", "for example --option aggregate=mean,sum")
    return option, words


def parse_values(said: str, texts: Sequence[str]) -> list[Value]:
    """Numbers from lists such as ``0.1,0.5`` and ranges such as ``0.1:1.0:0.1``, both ends included; each once.

    Args:
        said: The option as the user typed it, for the error.
        texts: Lists, ranges, or both with commas between.

    Raises:
        OsrmError: If one is no number or no range, or there are none, or too many.
    """
    found: dict[Value, None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        fields = part.split(":")
        if len(fields) not in (1, 3) or not all(_DECIMAL.fullmatch(field.strip()) for field in fields):
            raise OsrmError(f"{said}: '{part}' is no number and no START:STOP:STEP", "for example 0.1:1.0:0.1 or 0.3,1")
        # Decimals, since 0.1 + 0.2 is to be 0.3.
        first, *more = (Decimal(field.strip()) for field in fields)
        stop, step = more or (first, Decimal(1))
        if step <= 0 or stop < first or (stop - first) / step >= MAX_VALUES:
            raise OsrmError(
                f"{said}: '{part}' holds no values, or more than {MAX_VALUES}", "START is the smallest value"
            )
        whole = all(re.fullmatch(r"[+-]?\d+", field.strip()) for field in fields)
        steps = range(int((stop - first) / step) + 1)
        found |= dict.fromkeys((int if whole else float)(first + step * index) for index in steps)
    if not all(math.isfinite(value) for value in found if not isinstance(value, str)):
        raise OsrmError(f"{said} holds a number that is too large")
    return list(found)
