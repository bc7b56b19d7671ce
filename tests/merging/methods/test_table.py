import dataclasses
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.methods import METHODS, Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from tests.merging.methods.strategies import PAIRS, layer, merge

ELEMENT_RULES = {
    "breadcrumbs-ties",
    "della-linear",
    "sce",
    "ram",
    "tatr",
    "magmax",
    "ties",
    "dare",
    "dare-ties",
    "della",
    "breadcrumbs",
    "magnitude",
    "consensus",
}


def test_labels_are_unique_kebab_case() -> None:
    labels = [label for row in METHODS for label in (row.name, *row.aliases)]
    assert len(labels) == len(set(labels))
    assert all(label == label.lower() and "_" not in label and " " not in label for label in labels)


def test_every_element_rule_has_its_core_row() -> None:
    rows = {row.name: row for row in METHODS}
    for name in ELEMENT_RULES:
        assert rows[name].space == "element"
        assert rows[f"core-{name}"].space == "low-rank"
        assert rows[f"core-{name}"].options == rows[name].options


@pytest.mark.parametrize("method", METHODS, ids=lambda row: row.name)
def test_rows_are_complete(method: Method) -> None:
    fields = {field.name for field in dataclasses.fields(MethodOptions)}
    assert set(method.options) <= fields - {"scale"}
    assert ("seed" in method.needs) == ("seed" in method.options)
    assert method.summary
    assert method.load().__doc__ is not None or method.wrappers
    assert method.exact == (method.space == "low-rank")


@pytest.mark.parametrize("method", [row for row in METHODS if row.options], ids=lambda row: row.name)
def test_every_option_of_a_row_changes_its_result(method: Method) -> None:
    several = layer((30, 20), [3, 4] if method in PAIRS else [3, 4, 3])
    other = {"density": 0.5, "seed": 1, "rank": 1, "energy": 0.3, "aggregate": "sum", "window": 0.0, "outliers": 0.3}
    other |= {
        "mask_scale": 1.0,
        "agreement": 3,
        "common": 0.4,
        "floor": 2.0,
        "alpha": 0.1,
        "ridge": 1.0,
        "trim": 1,
        "penalty": 0.0,
        "epsilon": 1.0,
        "bonus": 0.5,
        "reach": 0.5,
        "primary": "mrpc",
    }
    beside = {"bonus": {"epsilon": 1.0}}  # RAM+ is RAM where every task uses every entry
    for option in method.options:
        given = beside.get(option, {})
        changed = merge(method, several, **given, **{option: other[option]})
        assert not torch.equal(changed, merge(method, several, **given)), option


def test_find_by_name_alias_and_underscore() -> None:
    assert find_method("task_arithmetic") is find_method("ta") is find_method("Task-Arith")
    assert find_method("knots_ties").wrappers == ("knots",)


def test_pico_goes_before_any_rule() -> None:
    assert find_method("pico+core_ties").wrappers == ("pico", "core")
    assert find_method("pico+ties").space == "element"
    assert find_method("pico+dare").needs == ("seed",)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tise", "ties"),
        ("knots-tie", "knots-ties"),
        ("qqqq", "--list"),
        ("pico+tise", "ties"),
        ("pico+emr", "pico+ties"),
    ],
)
def test_unknown_names_are_met_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(OsrmError) as caught:
        find_method(name)
    assert hint in str(caught.value.hint)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, osrm_cli.merging.methods as m; m.find_method('ties'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_layers_refuse_what_does_not_fit() -> None:
    one, other = layer((4, 3), [1]).deltas[0], layer((4, 5), [1]).deltas[0]
    with pytest.raises(OsrmError, match=r"\(4, 5\) in adapter 'b', but \(4, 3\) in 'a'"):
        LayerUpdates("query", ("a", "b"), (one, other), (1.0, 1.0))
    with pytest.raises(OsrmError, match="weight of adapter 'a' is nan"):
        LayerUpdates("query", ("a",), (one,), (float("nan"),))
    with pytest.raises(ValueError, match="different names"):
        LayerUpdates("query", ("a", "a"), (one, one), (1.0, 1.0))
    with pytest.raises(ValueError, match="1 weights for 2 adapters"):
        LayerUpdates("query", ("a", "b"), (one, one), (1.0,))


@pytest.mark.parametrize(
    "options",
    [{"density": 0.0}, {"density": 1.1}, {"energy": 0.0}, {"alpha": -0.1}, {"rank": 0}, {"scale": float("inf")}],
)
def test_options_refuse_what_makes_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MethodOptions(**options)


def test_layers_keep_the_order_of_names() -> None:
    a, b = (LowRank(torch.full((2, 1), value), torch.ones(1, 2)) for value in (1.0, 2.0))
    mixed = LayerUpdates("query", ("b", "a"), (b, a), (2.0, 1.0))
    assert mixed.adapters == ("a", "b")
    assert mixed.deltas == (a, b)
    assert mixed.weights == (1.0, 2.0)
