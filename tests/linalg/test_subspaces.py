import math

import pytest
import scipy.linalg
import torch

from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.linalg.subspaces import Spectrum, principal_angles, subspace_overlap
from osrm_cli.seeding import gaussian


def draw(rows, columns, *key):
    return gaussian(rows, columns, 0, "test", *key)


def test_overlap_compares_spans():
    A = draw(4, 40)
    assert subspace_overlap(A, draw(4, 4, "mix") @ A) == pytest.approx(1)
    eye = torch.eye(40)
    assert subspace_overlap(eye[:4], eye[4:8]) == 0
    assert subspace_overlap(eye[:4], eye[2:6]) == pytest.approx(0.5)
    pairs = [subspace_overlap(draw(4, 40, "one", str(i)), draw(4, 40, "other", str(i))) for i in range(200)]
    assert sum(pairs) / len(pairs) == pytest.approx(4 / 40, rel=0.05)


@pytest.mark.parametrize(("one", "other"), [(4, 4), (2, 6), (6, 2)])
def test_angles_equal_scipys(one, other):
    A_1, A_2 = draw(one, 9, "one"), draw(other, 9, "other")
    expected = sorted(scipy.linalg.subspace_angles(A_1.T.numpy(), A_2.T.numpy()))
    assert principal_angles(A_1, A_2).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, math.pi / 2 - 1e-9, math.pi / 2])
def test_extreme_angles_keep_their_digits(angle):
    A_1 = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    A_2 = torch.tensor([[math.cos(angle), math.sin(angle), 0]], dtype=torch.float64)
    assert float(principal_angles(A_1, A_2)) == pytest.approx(angle, abs=1e-15)


@pytest.mark.parametrize("make", [lambda C: Spectrum.of_moment(C), lambda C: Spectrum.of_rows(C.sqrt())])
def test_effective_rank_counts_equal_directions(make):
    def rank(*values):
        return make(torch.diag(torch.tensor(values, dtype=torch.float64))).effective_rank()

    assert rank(2, 2, 2, 0, 0) == pytest.approx(3)
    assert 1 < rank(10, 1, 0, 0, 0) < 2
    assert rank(0, 0, 0) == 0


def test_main_space_is_the_smallest_that_holds_the_energy():
    Q = torch.linalg.qr(draw(6, 6))[0]
    values = torch.tensor([60.0, 30, 8, 1.5, 0.4, 0.1], dtype=torch.float64)
    moment = SecondMoment((Q * values) @ Q.T, factored=False)
    rows = SecondMoment(draw(9, 6, "rows")[:, :0] if False else (values.sqrt()[:, None] * Q.T), factored=True)
    for gram in (moment, rows):
        for energy, count in ((0.5, 1), (0.89, 2), (0.91, 3), (0.99, 4), (0.9999, 6), (1.0, 6)):
            found = gram.spectrum().main_space(energy)
            assert found.shape == (count, 6)
            assert gram.share(found) >= energy - 1e-12
            assert energy == 1 or gram.share(found[:-1]) < energy
            assert subspace_overlap(found, Q.T[:count]) == pytest.approx(1)
