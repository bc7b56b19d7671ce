"""Recipes: every key, and every value that cannot be one refused in one line."""

import os

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.merging.recipes.recipe_file import read_recipe
from tests.factories import save


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
    assert read_recipe(path) == MergeRecipe(
        "ties",
        (
            RecipeEntry("adapters/cola"),
            RecipeEntry("adapters/mnli", -0.5),
            RecipeEntry("adapters/rte", (0.0, 1.0, 0.5)),
            RecipeEntry("adapters/sst2", {"query": 0.7, "value": (0.0, 1.0)}),
        ),
        {"lambda": 0.3, "density": 0.4},
        "somewhere",
        "model",
        "bfloat16",
    )


def test_written_recipes_read_back(tmp_path):
    entries = (RecipeEntry("a", (0.5, 1.0)), RecipeEntry("b", {"query": (1.0, 2.0), ".*": 0.1}))
    asked = MergeRecipe("dare", entries, {"lambda": 0.3, "seed": 3}, "features", "model", "float16")
    asked.write(tmp_path)
    assert read_recipe(tmp_path / "merge.yaml") == asked


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
    assert RecipeEntry("a", weight).weight_of(layer, depth) == pytest.approx(expected)


REFUSED = {
    "list": ("- a", "holds list, expected a mapping"),
    "syntax": ("a: [", "is not YAML"),
    "tag": ("!!python/object/apply:os.system ['true']", "is not YAML"),
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


HEAD = "method: task-arith\nadapters: [a, b]\n"
WEIGHT = "method: average\nadapters: [{path: a, weight: "
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED |= {
    "features": (HEAD + "features: 5", "'features' is 5, expected a folder"),
    "features list": (HEAD + "features: [a]", "'features' is .'a'., expected a folder"),
    "data map": (HEAD + "data: {a: 1}", "'data' is .*, expected hub, mini or a folder"),
    "as list": (HEAD + "as: [adapter]", "'as' is .'adapter'., expected adapter or model"),
    "dtype map": (HEAD + "dtype: {a: 1}", "'dtype' is"),
    "integer key": (HEAD + "1: 2", "unknown key 1, expected method"),
    "null key": (HEAD + "null: 2\nx: 3", "unknown key"),
    "integer option": (HEAD + "options: {1: 2}", "'options' is"),
    "integer pattern": (WEIGHT + "{1: 2}}]", "the key 1 of a weight"),
    "huge weight": (WEIGHT + "9" * 400 + "}]", "expected a number or a list"),
    "null weight": (WEIGHT + "null}]", "weight None, expected a number"),
    "slow pattern": (WEIGHT + "{'([a-z0-9.]+)+!': 2}}]", "can take forever"),
    "repetition": (WEIGHT + "{'a{99999999999}': 2}}]", "is not a regular expression"),
    "flags": (WEIGHT + "{'(?i)query': 2}}]", "is not a regular expression"),
    "int of nothing": (HEAD + "options: {lambda: !!int ''}", "is not YAML"),
    "float of nothing": (HEAD + "options: {lambda: !!float ''}", "is not YAML"),
    "bool of text": (HEAD + "options: {lambda: !!bool x}", "is not YAML"),
    "timestamp of text": (HEAD + "options: {lambda: !!timestamp x}", "is not YAML"),
    "no date": (HEAD + "options: {lambda: 2020-13-45}", "is not YAML"),
    "5000 digits": (HEAD + "options: {lambda: " + "9" * 5000 + "}", "is not YAML"),
    "deep": (HEAD + "options: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "aliases": (BOMB + HEAD, "more than 1048576 values"),
    "itself": ("method: x\nadapters: &a [*a]", "contains itself"),
    "two documents": (HEAD + "---\n" + HEAD, "is not YAML"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused(tmp_path, text, message):
    with pytest.raises(OsrmError, match=message):
        read_recipe(write(tmp_path / "merge.yaml", text))
    with pytest.raises(OsrmError, match="is missing"):
        read_recipe(tmp_path / "none.yaml")


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    save(tmp_path / "a", "bert", 1)
    with pytest.raises(OsrmError, match="for 'nowhere' matches no layer"):
        MergePlan.of(MergeRecipe("task-arith", (RecipeEntry(str(tmp_path / "a"), {"nowhere": 2.0}),)))


OPTIONS = {
    "base 60": ("task-arith", "lambda: 1:30", "option 'lambda' is '1:30', expected a finite number"),
    "null": ("task-arith", "lambda: null", "option 'lambda' is None, expected a finite number"),
    "not finite": ("task-arith", "lambda: .nan", "option 'lambda' is nan, expected a finite number"),
    "400 digits": ("task-arith", "lambda: " + "9" * 400, "option 'lambda' is 9+...9+, expected a finite number"),
    "truth": ("task-arith", "lambda: true", "option 'lambda' is True, expected a finite number"),
    "rank": ("task-arith", "rank: 1" + "0" * 30, "expected a whole number from 1 to 1,000,000,000"),
    "word": ("ties", "aggregate: zzz", "option 'aggregate' is 'zzz', expected 'mean' or 'sum'"),
    "density": ("ties", "density: 0", "option 'density' is 0, expected a share above 0, at most 1"),
    "floor": ("svc", "floor: -1", "option 'floor' is -1, expected a number that is not negative"),
    "floor nan": ("svc", "floor: .nan", "option 'floor' is nan"),
    "mask scale": ("consensus", "mask-scale: .nan", "option 'mask-scale' is nan, expected a number that is not neg"),
    "agreement": ("consensus", "agreement: 1.5", "option 'agreement' is 1.5, expected a whole number"),
    "steps": ("adamerging", "steps: 1" + "0" * 30, "expected a whole number from 1 to 1,000,000"),
    "seed": ("dare", "seed: -1", "option 'seed' is -1, expected a whole number"),
}


@pytest.mark.parametrize(("method", "option", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_out_of_range_are_refused(tmp_path, method, option, message):
    path = write(tmp_path / "merge.yaml", f"method: {method}\nadapters: [a]\noptions: {{{option}}}\n")
    with pytest.raises(OsrmError, match=message):
        MergePlan.of(read_recipe(path))


def test_numbers_as_people_write_them(tmp_path):
    text = "method: ties\nadapters: [a]\noptions: {lambda: 1e-1, density: .5}\n"
    assert read_recipe(write(tmp_path / "merge.yaml", text)).options == {"lambda": 0.1, "density": 0.5}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "merge.yaml")
    with pytest.raises(OsrmError, match="is a pipe, expected a file"):
        read_recipe(tmp_path / "merge.yaml")
