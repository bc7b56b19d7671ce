import torch

from osrm_cli.linalg import second_moment
from osrm_cli.seeding import gaussian


def moment(rank, noise=0.0):
    X = gaussian(rank, 8, 0, "ridge")
    E = gaussian(8, 8, 0, "noise")
    return X.T @ X + noise * (E + E.T)


def test_what_is_well_conditioned_stays_as_it_is():
    L, added = second_moment.ridge_cholesky(moment(30))
    assert added == 0
    torch.testing.assert_close(L @ L.T, moment(30))


def test_rounding_to_float32_counts_as_nothing():
    for C in (moment(3), moment(3).float().double(), moment(3, noise=1e-9)):
        L, added = second_moment.ridge_cholesky(C)
        assert 1e-7 < added / float(C.diagonal().mean()) < 1e-4
        assert (L @ L.T - C - added * torch.eye(8)).norm() < 1e-12 * C.norm()


def test_zero_is_mended():
    L, added = second_moment.ridge_cholesky(torch.zeros(3, 3, dtype=torch.float64))
    assert added > 0
    assert torch.isfinite(L).all()
