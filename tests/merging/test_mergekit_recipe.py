"""mergekit's recipes: read as what mergekit would compute, or refused."""

import pytest
import torch
import yaml

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.merging.recipes.recipe_file import read_recipe
from tests.factories import dense, save


def write(path, text):
    path.write_text(text)
    return path


def read(path, values):
    return read_recipe(write(path / "mergekit.yml", yaml.safe_dump(values)))


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
    return MergePlan.of(read_recipe(write(tmp_path / "mergekit.yml", yaml.safe_dump(values))))


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
    opened = [open_adapter(adapters / name) for name in "abc"]
    normalize = parameters.get("normalize", method in ("linear", "ties"))
    rule = plan.method.load()
    for layer in plan.layers[:2]:
        updates = plan.read_updates(layer, {})
        found = rule(updates, plan.options)
        found = found if isinstance(found, torch.Tensor) else found.dense()
        parts = [dense(adapter, layer) for adapter in opened]
        expected = mergekit(parts, weights, normalize, parameters.get("lambda", 1.0), density)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def without_tails(update, density, gamma):
    """mergekit's masks of breadcrumbs: the largest entries go, then the smallest until ``density`` are left."""
    count = update.numel()
    order = update.abs().flatten().argsort(descending=True)
    first = min(int(gamma * count), count - int(density * count))
    mask = torch.zeros(count, dtype=torch.float64)
    mask[order[first : first + int(density * count)]] = 1
    return update * mask.reshape(update.shape)


@pytest.mark.parametrize("normalize", [False, True])
def test_breadcrumbs(adapters, tmp_path, normalize):
    shared = {"gamma": 0.05, "normalize": normalize, "lambda": 0.5}
    weights = (0.5, 0.2, 1.1)
    plan = plan_of(adapters, tmp_path, "breadcrumbs", weights, shared, 0.6)
    layer = plan.layers[0]
    parts = [without_tails(dense(open_adapter(adapters / name), layer), 0.6, 0.05) for name in "abc"]
    expected = 0.5 * sum(weight * part for weight, part in zip(weights, parts, strict=True))
    found = plan.method.load()(plan.read_updates(layer, {}), plan.options).dense().double()
    torch.testing.assert_close(found, expected / sum(weights) if normalize else expected, rtol=1e-5, atol=1e-6)


def test_sce(adapters, tmp_path):
    models = [{"model": f"org/bert+{adapters / name}"} for name in "abc"]
    values = {"merge_method": "sce", "base_model": "org/bert", "models": models, "parameters": {"select_topk": 0.3}}
    plan = MergePlan.of(read(tmp_path, values))
    layer = plan.layers[0]
    parts = torch.stack([dense(open_adapter(adapters / name), layer) for name in "abc"])
    variance = parts.var(0, correction=0)
    count = int(0.3 * int((variance > 0).sum()))
    chosen = parts * (variance >= variance.flatten().sort(descending=True).values[count - 1])
    shares = chosen.square().mean((1, 2), keepdim=True) * (chosen.sign() == torch.where(chosen.sum(0) < 0, -1.0, 1.0))
    expected = (shares * chosen).sum(0) / shares.sum(0).clamp_min(1e-12)
    found = plan.method.load()(plan.read_updates(layer, {}), plan.options).dense().double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_ram(adapters, tmp_path, method):
    models = [{"model": f"org/bert+{adapters / name}"} for name in "abc"]
    parameters = {"epsilon": 0.15, **({"r": 0.3} if method == "ramplus_tl" else {})}
    values = {"merge_method": method, "base_model": "org/bert", "models": models, "parameters": parameters}
    plan = MergePlan.of(read(tmp_path, values))
    layer = plan.layers[0]
    parts = torch.stack([dense(open_adapter(adapters / name), layer) for name in "abc"])
    used = parts.abs() > 0.15
    users = used.sum(0)
    shared, own = ((used & mask).sum((1, 2)) for mask in (users > 1, users == 1))
    growth = 1 + (0.3 if method == "ramplus_tl" else 0.0) * (shared / own).clamp(0, 0.2)
    expected = (parts * used * torch.where(users == 1, growth[:, None, None], 1 / users.clamp(min=1))).sum(0)
    found = plan.method.load()(plan.read_updates(layer, {}), plan.options).dense().double()
    assert own.min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "names", "parameters", "expected"),
    [
        ("passthrough", "a", {}, ("task-arith", {"lambda": 1.0})),
        ("model_stock", "ab", {}, ("model-stock", {"lambda": 1.0})),
        ("ram", "ab", {}, ("ram", {"lambda": 1.0, "epsilon": 1e-5})),
        ("ramplus_tl", "ab", {"epsilon": 0.1}, ("ram", {"lambda": 1.0, "epsilon": 0.1, "bonus": 0.1})),
        ("sce", "ab", {"int8_mask": True}, ("sce", {"lambda": 1.0, "density": 1.0})),
        (
            "della_linear",
            "ab",
            {"density": 0.6, "epsilon": 0.1, "weight": 1},
            ("della-linear", {"lambda": 1.0, "density": 0.6, "window": 0.2}),
        ),
        (
            "della",
            "ab",
            {"weight": 0.5},
            ("della", {"lambda": 2.0, "density": 1.0, "window": 0.0, "aggregate": "mean"}),
        ),
        (
            "breadcrumbs_ties",
            "ab",
            {"density": 0.9, "weight": 1},
            ("breadcrumbs-ties", {"lambda": 1.0, "density": 0.9, "outliers": 0.01, "aggregate": "sum"}),
        ),
        ("dare_linear", "ab", {"normalize": True, "weight": 2}, ("dare", {"lambda": 0.25, "density": 1.0})),
    ],
)
def test_methods_by_other_names_and_defaults(tmp_path, method, names, parameters, expected):
    models = [{"model": f"b+{name}"} for name in names]
    found = read(tmp_path, {"merge_method": method, "base_model": "b", "models": models, "parameters": parameters})
    assert (found.method, found.options) == expected


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
    read = read_recipe(write(tmp_path / "m.yml", yaml.safe_dump(values)))
    assert read == MergeRecipe(
        "dare-ties",
        (RecipeEntry(str(adapters / "a"), 2.0, "org/bert", is_strict=False),),
        {"lambda": 1.0, "density": 0.5, "aggregate": "sum"},
        dtype="bfloat16",
    )


MODELS = [
    {"model": "b+x", "parameters": {"weight": 1.0, "density": 0.5}},
    {"model": "b+y", "parameters": {"weight": 0.5}},
]
DEEP = {"model": "b+x", "parameters": {"weight": [0.0, 1.0], "density": 0.5}}
BARE = [{"model": "b+x"}]
MERGEKIT_REFUSED = {
    "method": ({"merge_method": "task_adapter"}, "'merge_method' is 'task_adapter', expected linear"),
    "whole weights": ({"merge_method": "karcher"}, "mergekit's karcher has no equal here: its mean is one of whole"),
    "slices": ({"merge_method": "slerp", "slices": [], "parameters": {"t": 0.5}}, "mergekit's slerp has no equal here"),
    "key": ({"slices": []}, "mergekit's key 'slices' has no equal here"),
    "parameter": ({"parameters": {"gamma": 1}}, "mergekit's parameter 'gamma'"),
    "rescale": ({"merge_method": "dare_linear", "parameters": {"rescale": False}}, "rescale: false"),
    "densities": ({"merge_method": "ties"}, "expected one for all adapters"),
    "weights": (
        {"merge_method": "ties", "models": [*MODELS[1:], {"model": "b+z", "parameters": {"weight": 1}}]},
        "different weights",
    ),
    "linear": (
        {"merge_method": "linear", "parameters": {"normalize": False}},
        "unless the weights are numbers that add up to 1",
    ),
    "normalize": (
        {"merge_method": "breadcrumbs", "models": [DEEP], "parameters": {"normalize": True}},
        "'normalize: true' has no equal here unless the weights are numbers",
    ),
    "weights of sce": ({"merge_method": "sce"}, "mergekit's parameter 'density' has no equal in sce"),
    "epsilon": (
        {"merge_method": "della", "models": MODELS[:1], "parameters": {"epsilon": 0.3}},
        "epsilon 0.3 at density 0.5 has no equal",
    ),
    "models of passthrough": ({"merge_method": "passthrough", "models": BARE * 2}, "'passthrough' of 2 models"),
    "models of model_stock": ({"merge_method": "model_stock", "models": BARE}, "'model_stock' of one adapter"),
    "no weight": ({"models": [{"model": "b+x"}]}, "model x has no weight"),
    "model": ({"models": ["b+x"]}, "expected 'model: base"),
}


@pytest.mark.parametrize(("change", "message"), MERGEKIT_REFUSED.values(), ids=MERGEKIT_REFUSED)
def test_what_mergekit_means_otherwise_is_refused(tmp_path, change, message):
    values = {"merge_method": "task_arithmetic", "base_model": "b", "models": MODELS, **change}
    with pytest.raises(OsrmError, match=message):
        read_recipe(write(tmp_path / "m.yml", yaml.safe_dump(values)))


# --- bases ------------------------------------------------------------------------------------------------------------


def recipe_of(base, models, **more):
    entries = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "task_arithmetic", "models": entries, **({"base_model": base} if base else {}), **more}


@pytest.mark.parametrize(
    ("base", "models", "message"),
    [
        ("org/bert+lora", ["org/bert+{a}"], "'base_model: org/bert.lora' has no equal here"),
        ("org/bert", ["org/tuned+{a}", "org/bert+{b}"], "base models org/bert and org/tuned"),
        (None, ["org/tuned+{a}", "org/bert+{b}"], "base models org/tuned and org/bert"),
        ("org/bert", ["org/bert+{a}+{b}"], "expected one base model and one adapter"),
        ("org/bert", ["org/bert"], "none of the models is an adapter"),
    ],
)
def test_bases_that_are_no_single_base_are_refused(adapters, tmp_path, base, models, message):
    models = [model.format(a=adapters / "a", b=adapters / "b") for model in models]
    with pytest.raises(OsrmError, match=message):
        read(tmp_path, recipe_of(base, models))


@pytest.mark.parametrize("models", [["org/mistral+{a}"], ["{a}"]])
def test_a_base_that_is_not_the_adapters_own_is_refused(tmp_path, models):
    save(tmp_path / "a", "bert", 1)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": null', '"base_model_name_or_path": "org/bert"')
    )
    values = recipe_of("org/mistral", [model.format(a=tmp_path / "a") for model in models])
    with pytest.raises(OsrmError, match="belongs to base model org/bert, the recipe has it on org/mistral"):
        MergePlan.of(read(tmp_path, values))
    values = recipe_of("elsewhere/bert@main", [f"elsewhere/bert@main+{tmp_path / 'a'}"])
    assert MergePlan.of(read(tmp_path, values)).layers


def test_a_folder_whose_name_has_a_plus(tmp_path):
    save(tmp_path / "lora+dpo", "bert", 1)
    assert read(tmp_path, recipe_of(None, [str(tmp_path / "lora+dpo")])).adapters[0].path == str(tmp_path / "lora+dpo")


# --- values -----------------------------------------------------------------------------------------------------------

LAYER = "model.layers.{}.self_attn.q_proj"


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ([{"filter": "q_proj", "value": 0.7}], 0.2, {LAYER.format(0): 0.7, "model.layers.0.mlp.up_proj": 0.2}),
        ([{"filter": "mlp", "value": 0.7}], [0, 1], {LAYER.format(0): 0.0, LAYER.format(2): 1.0}),
        (
            [{"filter": "layers.1.", "value": 3}],
            [{"filter": "q_proj", "value": 2}, {"value": 1}],
            {LAYER.format(1): 3.0, LAYER.format(0): 2.0, "model.layers.0.mlp.up_proj": 1.0},
        ),
        ([{"filter": "q_proj.weight", "value": 3}, {"value": "1e-1"}], None, {LAYER.format(1): 3.0, "lm_head": 0.1}),
        ([{"filter": "q_proj.we", "value": 3}, {"filter": "*", "value": 1}], 5, {LAYER.format(1): 3.0, "lm_head": 1.0}),
        ([{"filter": "proj", "value": 3}, {"value": 1}], None, {LAYER.format(1): 3.0, "lm_head": 1.0}),
        ([{"filter": ".weight", "value": 3}, {"value": 1}], None, {LAYER.format(1): 3.0, "lm_head": 3.0}),
        ([{"filter": None, "value": 3}, {"filter": "q_proj", "value": 1}], None, {LAYER.format(1): 3.0}),
    ],
)
def test_filters_fall_back_as_mergekits_do(tmp_path, own, shared, expected):
    values = {
        "merge_method": "task_arithmetic",
        "base_model": "b",
        "models": [{"model": "b+x", "parameters": {"weight": own}}],
        "parameters": {} if shared is None else {"weight": shared},
    }
    (entry,) = read(tmp_path, values).adapters
    depths = {layer: int(layer.split(".")[2]) / 2 if "layers" in layer else 0.0 for layer in expected}
    assert {layer: entry.weight_of(layer, depths[layer]) for layer in expected} == expected


def test_a_filter_that_matches_no_adapted_layer_is_left_out(adapters, tmp_path):
    weight = [{"filter": "mlp", "value": 0.1}, {"filter": "query", "value": 0.7}, {"value": 0.2}]
    plan = plan_of(adapters, tmp_path, "task_arithmetic", (weight, 1.0, 1.0), {})
    assert plan.recipe.adapters[0].weight == {".*query.*": 0.7, ".*": 0.2}


def test_a_base_among_the_models_of_an_average_counts_with_its_weight(adapters, tmp_path):
    models = [
        {"model": "org/bert", "parameters": {"weight": 1.0}},
        {"model": f"org/bert+{adapters / 'a'}", "parameters": {"weight": 3.0}},
    ]
    found = read(tmp_path, {"merge_method": "linear", "models": models})
    assert (found.method, found.adapters[0].weight, len(found.adapters)) == ("task-arith", 0.75, 1)


def test_tokenizer_and_template_of_the_base_are_kept_anyway(adapters, tmp_path):
    more = {"tokenizer_source": "base", "chat_template": "auto"}
    assert read(tmp_path, recipe_of("b", ["b+x"], **more)) == read(tmp_path, recipe_of("b", ["b+x"]))


ODD = {
    "tokenizer": ({"tokenizer_source": "union"}, "'tokenizer_source: union' has no equal here"),
    "template": ({"chat_template": "chatml"}, "'chat_template: chatml' has no equal here"),
    "parameters": ({"parameters": [1]}, "'parameters' is .1., expected a mapping"),
    "own parameters": ({"models": [{"model": "b+x", "parameters": [1]}]}, "'parameters' is .1., expected a mapping"),
    "models": ({"models": {"a": 1}}, "'models' is"),
    "no models": ({"models": []}, "'models' is .., expected a list"),
    "method": ({"merge_method": ["ties"]}, "'merge_method' is"),
    "integer key": ({1: 2}, "mergekit's key 1 has no equal here"),
    "density over depth": (
        {"merge_method": "ties", "models": [{"model": "b+x", "parameters": {"weight": 1, "density": [1, 0.7, 0.1]}}]},
        "a density over depth or by filter has no equal here",
    ),
    "lambda": ({"parameters": {"lambda": [1]}}, "a lambda over depth"),
    "lambda nan": ({"parameters": {"lambda": float("nan")}}, "lambda nan, expected a finite number"),
    "normalize": ({"parameters": {"normalize": "x"}}, "'normalize' is 'x', expected true or false"),
    "rescale of ties": ({"merge_method": "ties", "parameters": {"rescale": True}}, "'rescale: true' of ties"),
    "dtype": ({"dtype": 5}, "'dtype' is 5"),
    "dtype's name": ({"dtype": "int8"}, "'dtype' is 'int8', expected float32"),
    "filter": (
        {"models": [{"model": "b+x", "parameters": {"weight": [{"filter": 5, "value": 1}]}}]},
        "filter 5, expected a part",
    ),
    "weight": ({"models": [{"model": "b+x", "parameters": {"weight": "x"}}]}, "weight 'x', expected a finite number"),
    "huge weight": ({"models": [{"model": "b+x", "parameters": {"weight": 10**400}}]}, "expected a finite number"),
    "no last value": (
        {"models": [{"model": "b+x", "parameters": {"weight": [{"filter": "q", "value": 1}]}}]},
        "model x has no weight where no filter matches",
    ),
}


@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD)
def test_values_without_an_equal_are_refused(tmp_path, change, message):
    values = {"merge_method": "task_arithmetic", "base_model": "b", "models": MODELS[:1], **change}
    with pytest.raises(OsrmError, match=message):
        read(tmp_path, values)
