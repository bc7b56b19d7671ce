"""The grid of a sweep: its values, its points, and lambda as a mere factor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.layer_data import NoLayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.methods import METHODS, find_method
from osrm_cli.merging.methods.layer_updates import MaskedDelta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.sweep import grid
from osrm_cli.sweep.grid import SweptDelta
from tests.factories import save

NAMES = ("cola", "mnli", "sst2")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> MergeRecipe:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        save(root / name, "bert", seed, r=2 + seed)
    return MergeRecipe("", tuple(RecipeEntry(str(root / name)) for name in NAMES))


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["0.1:1.0:0.1"], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),  # no 0.30000000000000004
        (["0.3, 1", ".5"], [0.3, 1, 0.5]),
        (["0.1:0.35:0.1"], [0.1, 0.2, 0.3]),
        (["-1:1:0.5"], [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (["0.5", "0.5:0.6:0.1"], [0.5, 0.6]),
        (["2:6:2", "8"], [2, 4, 6, 8]),
        (["1e-3"], [0.001]),
    ],
)
def test_values(texts: list[str], values: list[float]) -> None:
    found = grid.parse_grid_values("--lambda", texts)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text", ["", "x", "0.1:1.0", "1:2:3:4", "1.0:0.1:0.1", "0:1:0", "0:1:-0.1", "0:1:1e-9", "nan", "inf", "1e999", "0,"]
)
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(OsrmError, match="--lambda"):
        grid.parse_grid_values("--lambda", [text])


def test_options_by_name() -> None:
    assert grid.parse_grid_option("rank=4:8:4") == ("rank", [4, 8])
    assert grid.parse_grid_option("mask-scale=0.2,0.4") == ("mask_scale", [0.2, 0.4])
    assert grid.parse_grid_option("aggregate=sum,mean") == ("aggregate", ["sum", "mean"])
    for text, said in (
        ("nosuch=1", "'nosuch' is not an option"),
        ("aggregate=max", "expected some of mean, sum"),
        ("rank", "rank"),
    ):
        with pytest.raises(OsrmError, match=said):
            grid.parse_grid_option(text)


def test_points_are_the_product_of_what_each_method_uses(asked: MergeRecipe) -> None:
    spans = {"lambda": [0.2, 0.5], "density": [0.1, 0.4], "rank": [3]}
    found = grid.expand_grid(asked, ["task-arith", "ties", "ta"], spans, {"seed": [7]})
    points = [(family.plan.method.name, options) for family in found for options, _ in family.points()]
    ties = {"aggregate": "mean", "rank": 3}
    assert points == [
        ("task-arith", {"lambda": 0.2, "rank": 3}),
        ("task-arith", {"lambda": 0.5, "rank": 3}),
        ("ties", {"lambda": 0.2, "density": 0.1, **ties}),
        ("ties", {"lambda": 0.5, "density": 0.1, **ties}),
        ("ties", {"lambda": 0.2, "density": 0.4, **ties}),
        ("ties", {"lambda": 0.5, "density": 0.4, **ties}),
    ]
    assert len(found) == 3  # merges to carry out
    (dare,) = grid.expand_grid(asked, ["dare"], {}, {"seed": [7]})
    assert [options for options, _ in dare.points()] == [{"lambda": 1.0, "density": 0.2, "seed": 7}]


def test_options_that_no_method_uses(asked: MergeRecipe) -> None:
    with pytest.raises(OsrmError, match="none of task-arith, average uses --density"):
        grid.expand_grid(asked, ["task-arith", "average"], {"density": [0.1]}, {})


@pytest.mark.parametrize("method", ["regmean++", "adamerging"])
def test_merges_that_lambda_changes_otherwise_are_done_for_each(asked: MergeRecipe, method: str) -> None:
    found = grid.expand_grid(asked, [method], {"lambda": [0.2, 0.5]}, {})
    assert [family.plan.recipe.options["lambda"] for family in found] == [0.2, 0.5]
    assert [factor for family in found for _, factor in family.points()] == [1.0, 1.0]


RULES = [row.name for row in METHODS if not row.data_statistic and "features" not in row.needs]


@pytest.mark.parametrize("method", [*RULES, "pico+ties"])
def test_lambda_is_a_factor(asked: MergeRecipe, method: str) -> None:
    """The shared merge times lambda is the merge at lambda, for every rule of the table."""
    # A flat spectrum has no leading directions that a rank could mean.
    whole = find_method(method).is_task_aware or method in ("cat", "iso-c", "iso-cts")
    spans = {"lambda": [-0.7, 0.35]} | ({} if whole else {"rank": [2]})
    asked = replace(asked, adapters=asked.adapters[:2]) if method == "nearswap" else asked
    (family,) = grid.expand_grid(asked, [method], spans, {})
    shared = {layer.name: layer.result for layer in merge_layers(family.plan, family.layer_data, family.plan.layers)}
    for options, factor in family.points():
        plan = MergePlan.of(MergeRecipe(method, asked.adapters, options))
        change = SweptDelta(shared, factor, plan.dtype)
        for layer in merge_layers(plan, NoLayerData(), plan.layers):
            for index in range(len(NAMES)):
                found = change.delta(layer.name, index)
                if isinstance(layer.result, MaskedDelta):
                    expected = layer.result.for_task(index)
                else:
                    expected = layer.result.dense()
                torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)
    assert change.by_task == find_method(method).is_task_aware


def test_update_is_in_the_type_that_a_merge_would_write(asked: MergeRecipe) -> None:
    (family,) = grid.expand_grid(asked, ["task-arith"], {}, {})
    layer = next(merge_layers(family.plan, family.layer_data, family.plan.layers[:1]))
    assert isinstance(layer.result, LowRank)
    found = SweptDelta({layer.name: layer.result}, 0.3, torch.bfloat16).delta(layer.name, 0)
    narrow = layer.result.scaled(0.3).to(torch.bfloat16)
    assert found.dtype == torch.float32
    assert torch.equal(found, narrow.B.float() @ narrow.A.float())


def test_task_aware_methods_have_one_form(asked: MergeRecipe, tmp_path: Path) -> None:
    whole = MergeRecipe("", asked.adapters, output="model")
    forms = [family.plan.recipe.output for family in grid.expand_grid(whole, ["ties", "emr"], {}, {})]
    assert forms == ["model", "adapter"]
