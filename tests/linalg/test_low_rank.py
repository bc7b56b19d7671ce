import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.linalg.low_rank import LowRank, low_rank_cores, numerical_rank, squared_norm, stack_factors

some = settings(deadline=None, max_examples=25, derandomize=True)


@st.composite
def pairs(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> list[LowRank]:
    """One to four updates of one shape with mixed ranks, some rank-deficient or zero."""
    d_out, d_in = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    updates = []
    for rank in draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)):
        B = torch.randn(d_out, rank, generator=generator, dtype=dtype)
        kind = draw(st.sampled_from(["full", "full", "repeated", "zero"]))
        if kind != "full":
            B[:] = B[:, :1] if kind == "repeated" else 0
        updates.append(LowRank(B, torch.randn(rank, d_in, generator=generator, dtype=dtype)))
    return updates


@some
@given(pairs())
def test_stack_is_the_sum(updates: list[LowRank]) -> None:
    total = stack_factors(updates)
    assert total.rank == sum(update.rank for update in updates)
    torch.testing.assert_close(total.dense(), sum(update.dense() for update in updates))


def test_stack_keeps_the_bits_of_half_precision() -> None:
    B, A = torch.randn(4, 2).bfloat16(), torch.randn(2, 3).bfloat16()
    total = stack_factors([LowRank(B, A), LowRank(B, A)])
    assert total.B.dtype == torch.float32
    assert torch.equal(total.B[:, :2].bfloat16(), B)


@some
@given(pairs())
def test_core_space_loses_nothing(updates: list[LowRank]) -> None:
    for core in (low_rank_cores(updates), low_rank_cores(updates).in_principal_bases()):
        for Q in (core.Q_B, core.Q_A):
            torch.testing.assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype), atol=1e-12, rtol=0)
        for update, M in zip(updates, core.cores, strict=True):
            torch.testing.assert_close(core.Q_B @ M @ core.Q_A.T, update.dense(), atol=1e-11, rtol=0)
            torch.testing.assert_close(core.join(M).dense(), update.dense(), atol=1e-11, rtol=0)


def test_principal_core_has_the_size_of_the_joint_rank() -> None:
    one = LowRank(torch.randn(9, 2), torch.randn(2, 7))
    assert low_rank_cores([one, one, one.scaled(2)]).cores.shape == (3, 6, 6)
    assert low_rank_cores([one, one, one.scaled(2)]).in_principal_bases().cores.shape == (3, 2, 2)


@some
@given(pairs())
def test_squared_norm(updates: list[LowRank]) -> None:
    expected = stack_factors(updates).dense().square().sum()
    assert squared_norm(stack_factors(updates)) == pytest.approx(float(expected), rel=1e-10, abs=1e-20)


def test_squared_norm_survives_cancellation() -> None:
    update = LowRank(torch.randn(50, 3), torch.randn(3, 40))
    assert squared_norm(stack_factors([update, update.scaled(-1)])) < 1e-24 * squared_norm(update)


def test_squared_norm_needs_no_large_matrix() -> None:
    width = 200_000
    assert squared_norm(LowRank(torch.ones(width, 1), torch.ones(1, width))) == pytest.approx(width**2)


def test_numerical_rank_counts_against_what_cancelled() -> None:
    assert numerical_rank(torch.zeros(3)) == numerical_rank(torch.zeros(0)) == 0
    rounding = torch.tensor([1e-16, 1e-17], dtype=torch.float64)
    assert numerical_rank(rounding) == 2
    assert numerical_rank(rounding, largest=1.0) == 0


@some
@given(pairs(), st.integers(0, 5))
def test_a_higher_rank_is_filled_with_zeros(updates: list[LowRank], more: int) -> None:
    update = updates[0]
    padded = update.padded_to_rank(update.rank + more)
    assert padded.rank == len(padded.A) == update.rank + more
    assert not padded.B[:, update.rank :].any()
    assert not padded.A[update.rank :].any()
    torch.testing.assert_close(padded.dense(), update.dense())
