import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.linalg import subspaces
from osrm_cli.seeding import gaussian


def draw(rows, columns, *key):
    return gaussian(rows, columns, 0, "test", *key)


def rotation(r, seed):
    return torch.linalg.qr(gaussian(r, r, seed, "rotation"))[0]


@given(r=st.integers(1, 8), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_a_rotation_is_no_drift(r, seed):
    A = draw(r, 30)
    assert subspaces.procrustes_distance(A, rotation(r, seed) @ A) < 1e-13 * A.norm()


@pytest.mark.parametrize("r", [1, 4, 8])
def test_equals_scipy_and_no_rotation_is_nearer(r):
    A_0, A = draw(r, 30, "start"), draw(r, 30, "end")
    R, _ = scipy.linalg.orthogonal_procrustes(A_0.T.numpy(), A.T.numpy())
    found = subspaces.procrustes_distance(A_0, A)
    assert found == pytest.approx(float((A_0.T @ torch.from_numpy(R) - A.T).norm()), rel=1e-12)
    assert all(found <= float((rotation(r, seed) @ A_0 - A).norm()) + 1e-12 for seed in range(20))


def test_drift_is_relative_and_pools_layers_by_size():
    starts = {"small": draw(4, 30, "small"), "large": 10 * draw(4, 30, "large")}
    ends = {"small": 1.5 * starts["small"], "large": starts["large"].float()}
    found = subspaces.relative_procrustes_distances(starts, ends)
    assert found.layers == pytest.approx({"small": 0.5, "large": 0.0}, abs=1e-7)
    small, large = float(starts["small"].norm()), float(starts["large"].norm())
    assert found.overall == pytest.approx(0.5 * small / (small**2 + large**2) ** 0.5, rel=1e-6)


def test_a_start_of_zeros_has_no_drift_to_speak_of():
    assert subspaces.relative_procrustes_distances({"l": torch.zeros(2, 5)}, {"l": torch.ones(2, 5)}).overall == 0.0


def test_what_did_not_move_has_no_distance() -> None:
    """Exactly, where a decomposition would leave rounding."""
    A = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert subspaces.procrustes_distance(A, A.clone()) == 0
    assert subspaces.procrustes_distance(A, 2 * A) > 1


def test_the_complement_is_the_rest_of_the_space() -> None:
    Q = subspaces.orthonormal_rows(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double())
    rest = subspaces.orthogonal_complement(Q)
    whole = torch.cat([Q, rest])
    torch.testing.assert_close(whole @ whole.T, torch.eye(8, dtype=torch.float64))
    assert subspaces.orthogonal_complement(whole).shape == (0, 8)
