from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.rank_budget import allocate_rank_budget, direction_scores
from osrm_cli.initialization.objectives.table import find_objective
from osrm_cli.linalg.second_moment import SecondMoment


def spectrum(values):
    return torch.tensor(sorted(values, reverse=True), dtype=torch.float64)


@given(
    layers=st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=6), min_size=1, max_size=5),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_the_budget_buys_the_most_worth(layers, share):
    spectra = {str(name): spectrum(values) for name, values in enumerate(layers)}
    most = sum(map(len, layers))
    budget = len(layers) + round(share * (most - len(layers)))
    ranks = allocate_rank_budget(spectra, budget)
    assert sum(ranks.values()) == budget
    assert all(1 <= ranks[name] <= len(values) for name, values in spectra.items())
    free = sorted((float(v) for values in spectra.values() for v in values[1:]), reverse=True)
    bought = sum(float(values[1 : ranks[name]].sum()) for name, values in spectra.items())
    assert bought == pytest.approx(sum(free[: budget - len(layers)]), abs=1e-9)


def test_equal_spectra_get_equal_ranks():
    spectra = {name: spectrum([1, 1, 1, 1]) for name in "abc"}
    assert allocate_rank_budget(spectra, 6) == {"a": 2, "b": 2, "c": 2}
    assert allocate_rank_budget(spectra, 7) == {"a": 3, "b": 2, "c": 2}


def test_a_direction_cannot_be_had_without_the_ones_before_it():
    spectra = {"a": torch.tensor([1.0, 0.1, 9.0]), "b": torch.tensor([1.0, 0.5, 0.4])}
    assert allocate_rank_budget(spectra, 4) == {"a": 1, "b": 3}


@pytest.mark.parametrize("budget", [1, 7])
def test_a_budget_that_does_not_fit_is_refused(budget):
    with pytest.raises(OsrmError, match="expected 2 to 6"):
        allocate_rank_budget({"a": torch.ones(3), "b": torch.ones(3)}, budget)


@pytest.mark.parametrize("name", ["osrm", "osrm-in", "gevd", "eva"])
def test_worth_falls_along_the_rows_and_ignores_the_layers_size(name):
    generator = torch.Generator().manual_seed(0)
    out, own = (torch.randn(60, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    request = LayerProblem(
        8, 20, "l", "t", 0, others=SecondMoment(out.T @ out, False), own=SecondMoment(own.T @ own, False)
    )
    A = find_objective(name).load()(request)
    values = direction_scores(name, A, request)
    assert values[0] == pytest.approx(float(values.max()))
    if name in ("osrm", "eva"):
        assert (values.diff() <= 1e-12).all()
    larger = replace(request, others=SecondMoment(out.T @ out * 7, False), own=SecondMoment(own.T @ own * 9, False))
    torch.testing.assert_close(direction_scores(name, A, larger), values)


def test_a_random_start_has_no_spectrum():
    with pytest.raises(OsrmError, match="'kaiming' has no spectrum"):
        direction_scores("kaiming", torch.eye(2), LayerProblem(2, 2, "l", "t", 0))
