from dataclasses import replace

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.table import STATISTICS
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.table import OBJECTIVES, find_objective
from osrm_cli.linalg.second_moment import SecondMoment

RANK, D = 4, 30


def request(seed=0, **changes):
    """Rows and gradient for every objective; well below the width, so that null spaces exist."""
    generator = torch.Generator().manual_seed(1)
    out, own, gradient = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (9, 12, 6))
    others, own = SecondMoment(out, factored=True), SecondMoment(own, factored=True)
    made = LayerProblem(RANK, D, "layer.0", "sst2", seed, d_out=6, others=others, own=own, gradient=gradient)
    return replace(made, **changes)


def as_moments(made):
    return replace(made, others=SecondMoment(made.others.dense(), False), own=SecondMoment(made.own.dense(), False))


@pytest.mark.parametrize("row", OBJECTIVES, ids=lambda row: row.name)
def test_every_objective_keeps_what_its_row_promises(row):
    A = row.load()(request())
    assert A.shape == (RANK, D)
    assert A.dtype == torch.float64
    orthonormal = torch.allclose(A @ A.T, torch.eye(RANK, dtype=A.dtype), atol=1e-12)
    assert orthonormal == row.orthonormal
    torch.manual_seed(77)
    assert torch.equal(row.load()(request()), A)


@pytest.mark.parametrize("row", OBJECTIVES, ids=lambda row: row.name)
def test_a_missing_feature_is_the_users_error(row):
    bare = request(others=None, own=None, gradient=None)
    if not row.statistics:
        assert row.load()(bare).shape == (RANK, D)
        return
    with pytest.raises(OsrmError, match="layer"):
        row.load()(bare)


@pytest.mark.parametrize("row", OBJECTIVES, ids=lambda row: row.name)
def test_reads_only_what_its_row_says(row):
    """What a row says it does not need may be missing and cannot change the answer."""
    changes = {}
    if not row.needs_own:
        changes["own"] = None
    if not row.needs_others:
        changes["others"] = None
    if not row.needs_gradient:
        changes["gradient"] = None
    assert torch.equal(row.load()(request(**changes)), row.load()(request()))


@pytest.mark.parametrize("name", ["osrm-in", "gevd", "eva", "loss-aware"])
def test_rows_and_their_second_moment_are_the_same_problem(name):
    choose = find_objective(name).load()
    by_rows, by_moments = choose(request()), choose(as_moments(request()))
    torch.testing.assert_close(by_rows @ by_rows.T, by_moments @ by_moments.T, rtol=0, atol=1e-9)
    assert (by_rows @ by_moments.T).square().sum() == pytest.approx(RANK, abs=1e-7)


def test_the_best_statistic_at_hand_serves():
    held = ("mean", "sketch:64", "second-moment")
    assert find_objective("osrm").choose_statistic(held) == "mean"
    assert find_objective("gevd").choose_statistic(held) == "second-moment"
    assert find_objective("gevd").choose_statistic(("mean", "sketch:64")) == "sketch:64"
    assert find_objective("kaiming").choose_statistic(held) is None
    with pytest.raises(OsrmError, match="the features hold: mean"):
        find_objective("gevd").choose_statistic(("mean",))


def test_every_statistic_named_exists():
    kinds = {row.kind for row in STATISTICS}
    assert all(set(row.statistics) <= kinds for row in OBJECTIVES)
    assert all(bool(row.statistics) == (row.needs_own or row.needs_others) for row in OBJECTIVES)


def test_an_unknown_name_offers_the_nearest():
    assert find_objective("osrm_in").name == "osrm-in"
    with pytest.raises(OsrmError) as raised:
        find_objective("kaming")
    assert raised.value.hint == "did you mean 'kaiming'?"


@pytest.mark.parametrize("rank", [0, D + 1])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(OsrmError, match=f"rank {rank} does not fit layer.0"):
        request(rank=rank)
