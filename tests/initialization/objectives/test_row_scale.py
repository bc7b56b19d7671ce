import math
from dataclasses import replace

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.random_baselines import gaussian, kaiming, last_coordinates, random_orthonormal
from osrm_cli.initialization.objectives.row_scale import rescale_initial_rows
from osrm_cli.linalg import subspaces
from osrm_cli.linalg.second_moment import SecondMoment

RANK, D = 8, 256
X = torch.randn(50, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, D + 1) ** -0.5
REQUEST = LayerProblem(RANK, D, "l", "t", 0, own=SecondMoment(X, True))


def norm(A):
    return float(A.square().sum(dim=1).mean().sqrt())


def test_named_scales_have_the_norm_of_pefts_starts():
    A = random_orthonormal(REQUEST)
    many = [replace(REQUEST, seed=seed) for seed in range(40)]
    for how, start in (("kaiming", kaiming), ("gaussian", gaussian)):
        expected = sum(norm(start(request)) for request in many) / len(many)
        assert norm(rescale_initial_rows(A, how, REQUEST)) == pytest.approx(expected, rel=0.02)
    assert norm(rescale_initial_rows(A, "gaussian", REQUEST)) == pytest.approx(math.sqrt(D) / RANK)


@pytest.mark.parametrize("how", ["kaiming", "gaussian", "2.5", "match-output"])
def test_only_the_size_changes(how):
    A = gaussian(REQUEST)
    B = rescale_initial_rows(A, how, REQUEST)
    ratio = float(B.norm() / A.norm())
    torch.testing.assert_close(B, ratio * A, rtol=1e-12, atol=0)
    assert how != "2.5" or norm(B) == pytest.approx(2.5)


def test_orthonormal_is_the_nearest_and_leaves_orthonormal_rows_alone():
    A = gaussian(REQUEST)
    B = rescale_initial_rows(A, "orthonormal", REQUEST)
    torch.testing.assert_close(B @ B.T, torch.eye(RANK, dtype=A.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(rescale_initial_rows(B, "orthonormal", REQUEST), B, rtol=0, atol=1e-12)
    assert (A - B).norm() < (A - subspaces.orthonormal_rows(A)).norm()


@pytest.mark.parametrize("moment", [False, True])
def test_match_output_gives_the_outputs_of_the_kaiming_start(moment):
    request = replace(REQUEST, own=SecondMoment(X.T @ X / 50, False)) if moment else REQUEST
    A = rescale_initial_rows(last_coordinates(request), "match-output", request)
    many = [kaiming(replace(request, seed=seed)) for seed in range(300)]
    expected = sum(float((X @ K.T).square().sum()) for K in many) / len(many)
    assert float((X @ A.T).square().sum()) == pytest.approx(expected, rel=0.05)


def test_match_output_cannot_scale_what_gives_no_output():
    silent = replace(REQUEST, own=SecondMoment(torch.zeros(3, D), True))
    A = last_coordinates(silent)
    assert torch.equal(rescale_initial_rows(A, "match-output", silent), A)


def test_match_output_needs_own_features():
    with pytest.raises(OsrmError, match="no features of its own task for l"):
        rescale_initial_rows(last_coordinates(REQUEST), "match-output", replace(REQUEST, own=None))


@pytest.mark.parametrize("how", ["", "0", "-1", "nan", "inf", "normal"])
def test_other_scales_are_refused(how):
    with pytest.raises(OsrmError, match="unknown scale"):
        rescale_initial_rows(last_coordinates(REQUEST), how, REQUEST)
