from dataclasses import replace

import pytest
import torch

from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.warnings import start_warnings
from osrm_cli.linalg.second_moment import SecondMoment

BARE = LayerProblem(8, 64, "l", "t", 0)


def rows(n):
    return replace(BARE, others=SecondMoment(torch.ones(n, 64), True), own=SecondMoment(torch.ones(n, 64), True))


MOMENTS = replace(BARE, others=SecondMoment(torch.eye(64), False), own=SecondMoment(torch.eye(64), False))


@pytest.mark.parametrize("name", ["osrm", "osrm-in", "gevd", "eva", "official", "kaiming"])
def test_enough_features_raise_no_doubt(name):
    assert start_warnings(name, rows(30)) == []
    assert start_warnings(name, MOMENTS, out_tokens=5000, own_tokens=5000) == [] or name == "osrm-in"


def test_more_rows_than_free_directions():
    (reason,) = start_warnings("osrm", rows(57))
    assert "57 rows of other tasks leave 7 of 64 directions unused, fewer than rank 8" in reason
    assert start_warnings("osrm", rows(56)) == []


def test_fewer_tokens_than_directions():
    (reason,) = start_warnings("osrm", MOMENTS, out_tokens=40)
    assert "too few tokens of other tasks (40) for width 64" in reason
    assert "all 24 of these" in reason


def test_own_features_that_do_not_fill_the_rank():
    for name in ("osrm-in", "gevd", "eva"):
        assert any("rank 3, below rank 8" in reason for reason in start_warnings(name, rows(3)))
    assert start_warnings("osrm", rows(3)) == []


def test_osrm_in_without_a_null_space_says_what_it_does():
    (reason,) = start_warnings("osrm-in", MOMENTS, out_tokens=5000, own_tokens=5000)
    assert "99 %" in reason


def test_a_vanishing_eps_on_a_deficient_moment():
    (reason,) = start_warnings("gevd", replace(MOMENTS, eps=0.0), out_tokens=40)
    assert "unseen directions count as unused" in reason


def test_a_sketch_that_may_hide_more_than_an_average_direction_holds():
    (reason,) = start_warnings("osrm", replace(rows(30), others_sketch_error=0.02))
    assert "the sketches may hide more of the other tasks' energy in one direction" in reason
    assert start_warnings("osrm", replace(rows(30), others_sketch_error=0.015)) == []
