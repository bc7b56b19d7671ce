"""Recipes: ours, and mergekit's read as what mergekit would compute."""

import pytest
import torch
import yaml

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging import recipe
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipe import AdapterEntry, MergeRecipe
from tests.factories import dense, save


def write(path, text):
    path.write_text(text)
    return path


def test_every_key(tmp_path):
    path = write(
        tmp_path / "merge.yaml",
        """
method: ties
adapters:
  - adapters/cola
  - path: adapters/mnli
    weight: -0.5
  - path: adapters/rte
    weight: [0, 1, 0.5]
  - path: adapters/sst2
    weight: {query: 0.7, value: [0, 1]}
options: {lambda: 0.3, density: 0.4}
features: somewhere
as: model
dtype: bfloat16
""",
    )
    assert recipe.read_recipe(path) == MergeRecipe(
        "ties",
        (
            AdapterEntry("adapters/cola"),
            AdapterEntry("adapters/mnli", -0.5),
            AdapterEntry("adapters/rte", (0.0, 1.0, 0.5)),
            AdapterEntry("adapters/sst2", {"query": 0.7, "value": (0.0, 1.0)}),
        ),
        {"lambda": 0.3, "density": 0.4},
        "somewhere",
        "model",
        "bfloat16",
    )


def test_written_recipes_read_back(tmp_path):
    entries = (AdapterEntry("a", (0.5, 1.0)), AdapterEntry("b", {"query": (1.0, 2.0), ".*": 0.1}))
    asked = MergeRecipe("dare", entries, {"lambda": 0.3, "seed": 3}, "features", "model", "float16")
    asked.write(tmp_path)
    assert recipe.read_recipe(tmp_path / "merge.yaml") == asked


@pytest.mark.parametrize(
    ("weight", "layer", "depth", "expected"),
    [
        (0.7, "x", 0.3, 0.7),
        ((1.0, 3.0), "x", 0.0, 1.0),
        ((1.0, 3.0), "x", 0.25, 1.5),
        ((1.0, 3.0), "x", 1.0, 3.0),
        ((0.0, 4.0, 0.0), "x", 0.75, 2.0),
        ((5.0,), "x", 0.5, 5.0),
        ({"query": 2, ".*": 3}, "layer.0.query", 0.0, 2.0),
        ({"query": 2, ".*": 3}, "layer.0.value", 0.0, 3.0),
        ({"query": 2}, "layer.0.value", 0.0, 1.0),
        ({"query": 2}, "layer.0.myquery", 0.0, 1.0),
        ({r"layer\.\d+\.query": (0.0, 1.0)}, "encoder.layer.3.query", 0.5, 0.5),
        ({".*": 3, "query": 2}, "layer.0.query", 0.0, 3.0),
    ],
)
def test_weight_of_a_layer(weight, layer, depth, expected):
    assert AdapterEntry("a", weight).weight_of(layer, depth) == pytest.approx(expected)


REFUSED = {
    "list": ("- a", "holds list, expected a mapping"),
    "syntax": ("a: [", "is no YAML"),
    "tag": ("!!python/object/apply:os.system ['true']", "is no YAML"),
    "method": ("adapters: [a]", "'method' is missing"),
    "adapters": ("method: ties", "'adapters' is missing"),
    "key": ("{method: ties, adapters: [a], lamda: 3}", "unknown key 'lamda'"),
    "entry": ("{method: ties, adapters: [{folder: a}]}", "expected a path, or 'path' and 'weight'"),
    "weight": ("{method: ties, adapters: [{path: a, weight: much}]}", "weight 'much', expected a number"),
    "nan": ("{method: ties, adapters: [{path: a, weight: .nan}]}", "weight nan, expected a number"),
    "empty": ("{method: ties, adapters: [{path: a, weight: []}]}", "empty list"),
    "pattern": ("{method: ties, adapters: [{path: a, weight: {'(': 1}}]}", "merge.yaml"),
    "options": ("{method: ties, adapters: [a], options: [3]}", "'options' is"),
    "as": ("{method: ties, adapters: [a], as: gguf}", "expected adapter or model"),
    "dtype": ("{method: ties, adapters: [a], dtype: int8}", "'dtype' is 'int8'"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused(tmp_path, text, message):
    with pytest.raises(OsrmError, match=message):
        recipe.read_recipe(write(tmp_path / "merge.yaml", text))
    with pytest.raises(OsrmError, match="is missing"):
        recipe.read_recipe(tmp_path / "none.yaml")


# --- mergekit ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("abc"):
        save(root / name, "bert", seed)
    return root


def plan_of(adapters, tmp_path, method, weights, parameters, density=None):
    own = {"density": density} if density else {}
    models = [
        {"model": f"org/bert+{adapters / name}", "parameters": {"weight": weight, **own}}
        for name, weight in zip("abc", weights, strict=True)
    ]
    values = {"merge_method": method, "base_model": "org/bert", "models": models, "parameters": parameters}
    return MergePlan.of(recipe.read_recipe(write(tmp_path / "mergekit.yml", yaml.safe_dump(values))))


def mergekit(updates, weights, normalize, scale=1.0, density=None):
    """mergekit's generalised task arithmetic, in float64; ``density`` trims by magnitude and elects signs."""
    weights = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    stacked = torch.stack(updates)
    if density is None:
        mixed, divisor = (stacked * weights).sum(0), weights.sum(0)
    else:
        keep = int(density * updates[0].numel())
        cut = stacked.abs().flatten(1).sort(dim=1, descending=True).values[:, keep - 1][:, None, None]
        weighted = torch.where(stacked.abs() >= cut, stacked, 0.0) * weights
        mask = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
        mixed, divisor = (weighted * mask).sum(0), (weights * mask).sum(0)
        divisor[divisor == 0] = 1
    return scale * (mixed / divisor if normalize else mixed)


CASES = {
    "task arithmetic": ("task_arithmetic", (0.5, -0.2, 1.1), {"lambda": 0.7}, None),
    "task arithmetic, normalised": ("task_arithmetic", (0.5, 0.2, 1.1), {"normalize": True}, None),
    "linear": ("linear", (0.5, 0.2, 1.1), {}, None),
    "linear of weights that add up to 1": ("linear", (0.5, 0.2, 0.3), {"normalize": False}, None),
    "ties": ("ties", (0.4, 0.4, 0.4), {"lambda": 0.5}, 0.3),
    "ties, not normalised": ("ties", (0.4, 1.2, 0.4), {"normalize": False, "int8_mask": True}, 0.3),
}


@pytest.mark.parametrize(("method", "weights", "parameters", "density"), CASES.values(), ids=CASES)
def test_mergekit_recipes_compute_what_mergekit_computes(adapters, tmp_path, method, weights, parameters, density):
    plan = plan_of(adapters, tmp_path, method, weights, parameters, density)
    opened = [Adapter.open(adapters / name) for name in "abc"]
    normalize = parameters.get("normalize", method in ("linear", "ties"))
    rule = plan.method.load()
    for layer in plan.layers[:2]:
        updates = plan.read_updates(layer, {})
        found = rule(updates, plan.options)
        found = found if isinstance(found, torch.Tensor) else found.dense()
        parts = [dense(adapter, layer) for adapter in opened]
        expected = mergekit(parts, weights, normalize, parameters.get("lambda", 1.0), density)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_mergekits_filters_and_gradients(adapters, tmp_path):
    weight = [{"filter": "self.query", "value": [0.0, 1.0]}, {"value": 0.25}]
    plan = plan_of(adapters, tmp_path, "task_arithmetic", (weight, 1.0, 1.0), {})
    entry = plan.recipe.adapters[0]
    assert entry.weight_of("bert.encoder.layer.1.attention.self.query", 0.5) == 0.5
    assert entry.weight_of("bert.encoder.layer.1.attention.self.value", 0.5) == 0.25


def test_mergekits_dtype_and_base_as_a_model(adapters, tmp_path):
    values = {
        "merge_method": "dare_ties",
        "base_model": "org/bert",
        "dtype": "bfloat16",
        "models": [{"model": "org/bert"}, {"model": str(adapters / "a"), "parameters": {"density": 0.5, "weight": 2}}],
    }
    read = recipe.read_recipe(write(tmp_path / "m.yml", yaml.safe_dump(values)))
    assert read == MergeRecipe(
        "dare-ties",
        (AdapterEntry(str(adapters / "a"), 2.0),),
        {"lambda": 1.0, "density": 0.5, "aggregate": "sum"},
        dtype="bfloat16",
    )


MODELS = [
    {"model": "b+x", "parameters": {"weight": 1.0, "density": 0.5}},
    {"model": "b+y", "parameters": {"weight": 0.5}},
]
MERGEKIT_REFUSED = {
    "method": ({"merge_method": "slerp"}, "mergekit's method 'slerp'"),
    "key": ({"slices": []}, "mergekit's key 'slices' has no equal here"),
    "parameter": ({"parameters": {"gamma": 1}}, "mergekit's parameter 'gamma'"),
    "rescale": ({"merge_method": "dare_linear", "parameters": {"rescale": False}}, "rescale: false"),
    "densities": ({"merge_method": "ties"}, "expected one for all adapters"),
    "weights": (
        {"merge_method": "ties", "models": [*MODELS[1:], {"model": "b+z", "parameters": {"weight": 1}}]},
        "different weights",
    ),
    "linear": ({"merge_method": "linear", "parameters": {"normalize": False}}, "unless the weights add up to 1"),
    "dare": ({"merge_method": "dare_linear", "models": MODELS[:1], "parameters": {"normalize": True}}, "dare_linear"),
    "no weight": ({"models": [{"model": "b+x"}]}, "model x has no weight"),
    "model": ({"models": ["b+x"]}, "expected 'model: base"),
}


@pytest.mark.parametrize(("change", "message"), MERGEKIT_REFUSED.values(), ids=MERGEKIT_REFUSED)
def test_what_mergekit_means_otherwise_is_refused(tmp_path, change, message):
    values = {"merge_method": "task_arithmetic", "base_model": "b", "models": MODELS, **change}
    with pytest.raises(OsrmError, match=message):
        recipe.read_recipe(write(tmp_path / "m.yml", yaml.safe_dump(values)))


def test_a_pattern_that_matches_nothing_is_refused(adapters):
    with pytest.raises(OsrmError, match="for 'nowhere' matches no layer"):
        MergePlan.of(MergeRecipe("task-arith", (AdapterEntry(str(adapters / "a"), {"nowhere": 2.0}),)))
