import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.data_aware import eva, gevd, loss_aware, osrm_in
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.linalg import eigen
from osrm_cli.linalg.second_moment import SecondMoment

RANK, D = 4, 40


def rows(n, seed, d=D):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -0.5


def moment(C):
    return SecondMoment(C, factored=False)


def by_rows(out=12, own=9, d=D, **changes):
    made = LayerProblem(
        RANK, d, "l", "t", 0, others=SecondMoment(rows(out, 0, d), True), own=SecondMoment(rows(own, 1, d), True)
    )
    return replace(made, **changes)


def by_moments(out=90, own=70, d=D, **changes):
    H, X = rows(out, 0, d), rows(own, 1, d).flip(1)
    made = LayerProblem(RANK, d, "l", "t", 0, others=moment(H.T @ H / out), own=moment(X.T @ X / own))
    return replace(made, **changes)


def same_span(A, other, tolerance):
    torch.testing.assert_close(A.T @ A, other.T @ other, rtol=0, atol=tolerance)


def symmetric_power(M, power):
    values, vectors = torch.linalg.eigh(M)
    return (vectors * values**power) @ vectors.T


def metric(request):
    C = request.others.matrix
    return C + request.eps * C.trace() / request.d_in * torch.eye(request.d_in, dtype=C.dtype)


@given(eps=st.floats(1e-6, 1e3), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_gevd_is_the_generalised_eigenproblem(eps, seed):
    request = replace(by_moments(eps=eps), own=moment(rows(70, seed + 5).T @ rows(70, seed + 5)))
    A = gevd(request)
    root = symmetric_power(metric(request), -0.5)
    _, vectors = torch.linalg.eigh(root @ request.own.matrix @ root)
    same_span(A, torch.linalg.qr(root @ vectors[:, -RANK:])[0].T, 1e-6)


def test_gevd_maximises_signal_per_interference_first():
    request = by_moments()
    u, M = gevd(request)[0], metric(request)
    ratio = (u @ request.own.matrix @ u) / (u @ M @ u)
    best = torch.linalg.eigvals(torch.linalg.solve(M, request.own.matrix)).real.max()
    assert ratio == pytest.approx(float(best), rel=1e-9)


@pytest.mark.parametrize("make", [by_rows, lambda **changes: by_moments(out=12, own=70, **changes)])
def test_gevd_tends_to_osrm_in_as_eps_falls(make):
    spans = [gevd(make(eps=eps)) for eps in (1e-5, 1e-7, 0.0)]
    limit = osrm_in(make())
    gaps = [(A.T @ A - limit.T @ limit).norm() for A in spans]
    assert gaps[0] < 1e-2
    assert gaps[1] < 1e-4
    assert gaps[2] < 1e-4


@pytest.mark.parametrize("make", [by_rows, by_moments])
def test_gevd_tends_to_eva_as_eps_grows(make):
    limit = eva(make())
    same_span(gevd(make(eps=1e9)), limit, 1e-6)
    same_span(gevd(make(eps=math.inf)), limit, 1e-10)


@pytest.mark.parametrize("d", [30, 700])
def test_gevd_ignores_the_size_of_the_features(d):
    request = by_moments(out=900, own=800, d=d)
    scaled = replace(request, others=moment(request.others.matrix * 1e6), own=moment(request.own.matrix * 1e-6))
    torch.testing.assert_close(gevd(scaled), gevd(request), rtol=0, atol=1e-5)


def test_gevd_survives_rounding_to_float32():
    request = by_moments(out=12)
    stored = replace(request, others=request.others.to(torch.float32), own=request.own.to(torch.float32), eps=0.0)
    assert torch.linalg.eigvalsh(stored.others.matrix.double()).min() < 0
    A = gevd(stored)
    assert request.others_energy_share(A).max() < 1e-4


def test_gevd_with_features_of_zeros_is_eva():
    request = by_moments(others=moment(torch.zeros(D, D, dtype=torch.float64)))
    same_span(gevd(request), eva(request), 1e-10)


def test_an_indefinite_moment_is_the_users_error():
    with pytest.raises(OsrmError, match="not positive semi-definite"):
        gevd(by_moments(others=moment(torch.diag(torch.tensor([-1.0] + [1.0] * (D - 1))))))


def test_eva_takes_the_main_directions():
    request = by_moments()
    _, vectors = torch.linalg.eigh(request.own.matrix)
    torch.testing.assert_close(
        eva(request), eigen.fix_eigenvector_signs(vectors.flip(1)[:, :RANK].T), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("make", [by_rows, lambda: by_moments(out=12)])
def test_osrm_in_is_the_best_of_the_null_space(make):
    request = make()
    A = osrm_in(request)
    assert request.others_energy_share(A).max() < 1e-24 if request.others.factored else 1e-14
    H = rows(12, 0)
    null = torch.linalg.svd(H)[2][12:]
    own = request.own.dense()
    best = torch.linalg.eigvalsh(null @ own @ null.T)[-RANK:].sum()
    assert ((A @ own) * A).sum() == pytest.approx(float(best), rel=1e-9)


def test_osrm_in_keeps_off_the_main_energy_where_nothing_is_free():
    request = by_moments(out=90)
    request = replace(request, others=moment(request.others.matrix**3 / request.others.matrix.abs().max() ** 2))
    values, vectors = torch.linalg.eigh(request.others.matrix)
    share = values.flip(0).cumsum(0) / values.sum()
    main = vectors.flip(1)[:, : 1 + int((share < 0.99).sum())]
    assert 1 < main.shape[1] < D - RANK
    A = osrm_in(request)
    assert (A @ main).abs().max() < 1e-10
    rest = torch.linalg.svd(main.T)[2][main.shape[1] :]
    best = torch.linalg.eigvalsh(rest @ request.own.matrix @ rest.T)[-RANK:].sum()
    assert ((A @ request.own.matrix) * A).sum() == pytest.approx(float(best), rel=1e-9)


def test_osrm_in_leaves_room_for_the_rank():
    A = osrm_in(by_moments(others=moment(torch.eye(D, dtype=torch.float64))))
    torch.testing.assert_close(A @ A.T, torch.eye(RANK, dtype=A.dtype), rtol=0, atol=1e-12)


def test_loss_aware_spans_the_whitened_gradients_right_singular_vectors():
    G = torch.randn(15, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    request = by_moments(gradient=G)
    root = symmetric_power(metric(request), -0.5)
    Q = torch.linalg.svd(G @ root)[2][:RANK]
    same_span(loss_aware(request), torch.linalg.qr((Q @ root).T)[0].T, 1e-9)


@pytest.mark.parametrize("choose", [gevd, eva, osrm_in])
def test_what_the_own_features_do_not_fill_is_drawn(choose):
    """Two own rows for rank four: both are used, and the rest depends on the seed."""
    one, other = (choose(by_rows(own=2, seed=seed)) for seed in (0, 1))
    torch.testing.assert_close(one @ one.T, torch.eye(RANK, dtype=one.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(one[:2], other[:2], rtol=0, atol=1e-9)
    assert (one[2:] @ other[2:].T).square().sum() / 2 < 0.5
    if choose is osrm_in:
        assert by_rows().others_energy_share(one).max() < 1e-24


@pytest.mark.parametrize("choose", [gevd, osrm_in])
def test_wide_layers_take_the_iterative_solver(choose, monkeypatch):
    request = by_moments(out=300, own=300)
    expected = choose(request)
    monkeypatch.setattr(eigen, "DENSE", 0)
    same_span(choose(request), expected, 1e-8)
