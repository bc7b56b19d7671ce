import math

import pytest
import scipy.linalg
import torch

from osrm_cli.maths import overlap, random


def draw(rows, columns, *key):
    return random.gaussian(rows, columns, 0, "test", *key)


def test_overlap_compares_spans():
    A = draw(4, 40)
    assert overlap.overlap(A, draw(4, 4, "mix") @ A) == pytest.approx(1)
    eye = torch.eye(40)
    assert overlap.overlap(eye[:4], eye[4:8]) == 0
    assert overlap.overlap(eye[:4], eye[2:6]) == pytest.approx(0.5)
    pairs = [overlap.overlap(draw(4, 40, "one", str(i)), draw(4, 40, "other", str(i))) for i in range(200)]
    assert sum(pairs) / len(pairs) == pytest.approx(4 / 40, rel=0.05)


@pytest.mark.parametrize(("one", "other"), [(4, 4), (2, 6), (6, 2)])
def test_angles_equal_scipys(one, other):
    A_1, A_2 = draw(one, 9, "one"), draw(other, 9, "other")
    expected = sorted(scipy.linalg.subspace_angles(A_1.T.numpy(), A_2.T.numpy()))
    assert overlap.principal_angles(A_1, A_2).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, math.pi / 2 - 1e-9, math.pi / 2])
def test_extreme_angles_keep_their_digits(angle):
    A_1 = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    A_2 = torch.tensor([[math.cos(angle), math.sin(angle), 0]], dtype=torch.float64)
    assert float(overlap.principal_angles(A_1, A_2)) == pytest.approx(angle, abs=1e-15)


def test_effective_rank_counts_equal_directions():
    assert overlap.effective_rank(torch.diag(torch.tensor([2.0, 2, 2, 0, 0]))) == pytest.approx(3)
    assert 1 < overlap.effective_rank(torch.diag(torch.tensor([10.0, 1, 0, 0, 0]))) < 2
    assert overlap.effective_rank(torch.zeros(3, 3)) == 0


def test_main_space_is_the_smallest_that_holds_the_energy():
    Q = torch.linalg.qr(draw(6, 6))[0]
    C = (Q * torch.tensor([60.0, 30, 8, 1.5, 0.4, 0.1])) @ Q.T
    for energy, count in ((0.5, 1), (0.89, 2), (0.91, 3), (0.99, 4), (0.9999, 6)):
        rows = overlap.main_space(C, energy)
        assert rows.shape == (count, 6)
        assert overlap.energy_share(C, rows) >= energy
        assert overlap.energy_share(C, rows[:-1]) < energy
        assert overlap.overlap(rows, Q.T[:count]) == pytest.approx(1)
