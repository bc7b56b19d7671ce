"""Merged folders computed on another device: the same bytes, and nothing mixed with the CPU on the way to the disk."""

import itertools

import pytest
import torch

from osrm_cli.merging.feature_moments import open_layer_data
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.output.merged_folder import write_merged_folder
from osrm_cli.merging.output.merged_model import MergeTarget
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from tests.factories import model, save
from tests.fake_device import DEVICE, Elsewhere


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("elsewhere")
    save(root / "a", "bert", 0, target_modules=["query", "value"])
    save(root / "b", "bert", 1, target_modules=["query"])  # no value: an update of rank zero there
    model("bert").bert.save_pretrained(str(root / "base"))
    return root


@pytest.mark.parametrize(
    ("method", "output"),
    [*itertools.product(["task-arith", "ties", "dare", "tsv"], ["adapter", "model"]), ("emr", "adapter")],
)
def test_the_same_bytes_from_another_device(root, tmp_path, method, output):
    def written(name, device):
        plan = MergePlan.of(
            MergeRecipe(method, (RecipeEntry(str(root / "a")), RecipeEntry(str(root / "b"))), {}, output=output)
        )
        target = MergeTarget.find(plan, root / "base", plan.read_saved_modules()) if output == "model" else None
        (tmp_path / name).mkdir()
        data = open_layer_data(plan)
        layers = merge_layers(plan, data, target.order() if target else plan.layers, 1, device)
        write_merged_folder(tmp_path / name, plan, plan.read_saved_modules(), layers, data, None, target)
        paths = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in paths}

    expected = written("here", torch.device("cpu"))
    with Elsewhere():
        found = written("there", DEVICE)
    assert found == expected
    assert any(path.suffix == ".safetensors" for path in found)
