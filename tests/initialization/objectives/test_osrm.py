import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.osrm import official, osrm
from osrm_cli.linalg import second_moment
from osrm_cli.linalg.second_moment import SecondMoment


def rows(n, d, seed=0, offset=0.3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset


def request(rank, d, **changes):
    return LayerProblem(**{"rank": rank, "d_in": d, "layer": "l", "task": "t", "seed": 0} | changes)


def check_orthonormal(A):
    torch.testing.assert_close(A @ A.T, torch.eye(len(A), dtype=A.dtype), rtol=0, atol=1e-12)


@given(n=st.integers(1, 40), rank=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_osrm_solves_equation_two(n, rank, seed):
    """Null space, its edge and beyond: never more than the sum of the r smallest eigenvalues."""
    d = 24
    H = rows(n, d, seed)
    A = osrm(request(rank, d, others=SecondMoment(H, True)))
    check_orthonormal(A)
    values = torch.cat([torch.zeros(max(d - n, 0), dtype=H.dtype), torch.linalg.svdvals(H).flip(0)])
    optimum, reached, size = values[:rank].square().sum(), (A @ H.T).square().sum(), float(H.norm() ** 2)
    assert reached == pytest.approx(float(optimum), rel=1e-9, abs=1e-14 * size)
    if n + rank <= d:
        assert reached < 1e-28 * size


@given(n=st.integers(25, 60), rank=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_osrm_on_a_second_moment_solves_the_same_problem(n, rank, seed):
    H = rows(n, 24, seed)
    by_rows = osrm(request(rank, 24, others=SecondMoment(H, True)))
    by_moment = osrm(request(rank, 24, others=SecondMoment(H.T @ H / n, False)))
    torch.testing.assert_close(by_rows, by_moment, rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [384, 1024])
def test_the_null_space_residual_is_at_machine_precision(d):
    H = rows(7, d) * 100
    A = osrm(request(8, d, others=SecondMoment(H, True)))
    assert (A @ H.T).abs().max() < 8 * torch.finfo(torch.float64).eps * H.norm()


def test_dependent_rows_are_safe():
    H = rows(3, 20)
    for dependent in (torch.cat([H] * 2), torch.cat([H] * 9), torch.zeros(3, 20), torch.cat([H, torch.zeros(1, 20)])):
        A = osrm(request(4, 20, others=SecondMoment(dependent, True)))
        check_orthonormal(A)
        assert (A @ dependent.double().T).abs().max() < 1e-13


def test_features_are_not_centred():
    """Centring would leave the rows' mean free to be chosen."""
    mean, difference = rows(2, 10)
    A = osrm(request(8, 10, others=SecondMoment(torch.stack([mean + difference, mean - difference]), True)))
    assert (A @ mean).abs().max() < 1e-13


def test_the_basis_is_drawn_by_seed_task_and_layer():
    H = rows(5, 200)
    bases = [
        osrm(request(4, 200, others=SecondMoment(H, True), **change))
        for change in ({}, {"seed": 1}, {"task": "u"}, {"layer": "m"})
    ]
    for one in range(4):
        for other in range(one):
            assert (bases[one] @ bases[other].T).square().sum() / 4 < 0.1  # random: 4 / 195


def test_a_lower_rank_keeps_the_leading_rows():
    H = rows(40, 24)
    high = osrm(request(6, 24, others=SecondMoment(H, True)))
    torch.testing.assert_close(osrm(request(2, 24, others=SecondMoment(H, True))), high[:2], rtol=0, atol=1e-10)


def test_official_is_the_tail_of_the_full_svd():
    H = rows(7, 64) * torch.tensor([1.0, 5, 20, 0.1, 3, 3, 3])[:, None]
    A = official(request(8, 64, others=SecondMoment(H, True)))
    check_orthonormal(A)
    assert (A @ H.T).abs().max() < 1e-14 * H.norm()
    _, _, Vh = torch.linalg.svd(H)
    assert torch.equal(A, Vh[-8:])


def test_official_amounts_to_the_last_coordinates():
    """What the full SVD completes the row space with: nearly the same A for tasks with nothing in common."""
    one, other = (official(request(8, 512, others=SecondMoment(rows(7, 512, seed, offset=0), True))) for seed in (0, 1))
    assert (one @ other.T).square().sum() / 8 > 0.9
    ours, theirs = (osrm(request(8, 512, others=SecondMoment(rows(7, 512, s), True), task=str(s))) for s in (0, 1))
    assert (ours @ theirs.T).square().sum() / 8 < 0.1


def test_rows_are_stacked_as_they_come_or_with_equal_weight():
    mean, samples = rows(1, 5)[0], rows(3, 5, 1)
    assert torch.equal(
        second_moment.stack_moment_rows([mean, samples], balanced=False), torch.cat([mean[None], samples])
    )
    H = second_moment.stack_moment_rows([mean, samples, torch.zeros(2, 5)], balanced=True)
    assert [float(part.square().sum()) for part in (H[:1], H[1:4], H[4:])] == pytest.approx([1, 1, 0])


def test_the_others_are_the_total_minus_the_own():
    moments = [X.T @ X * scale for X, scale in zip((rows(9, 6, s) for s in range(4)), (1, 1e3, 1e-3, 5), strict=True)]
    total = second_moment.total_moment(moments)
    for own in range(4):
        others = [C / C.trace() for task, C in enumerate(moments) if task != own]
        expected = sum(others) / 3
        torch.testing.assert_close(second_moment.others_moment(total, moments[own], 4), expected, rtol=0, atol=1e-15)
        assert float(expected.trace()) == pytest.approx(1)
    with pytest.raises(OsrmError, match="at least one other"):
        second_moment.others_moment(total, moments[0], 1)
    with pytest.raises(OsrmError, match="no second moments"):
        second_moment.total_moment([])
