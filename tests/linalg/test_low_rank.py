import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank, core_space, numerical_rank, squared_norm, stack, truncate

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


def spectrum(sigma: Tensor, shape: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(d, len(sigma), generator=generator, dtype=torch.float64)).Q for d in shape)
    return U * sigma @ V.T


@some
@given(pairs())
def test_stack_is_the_sum(updates: list[LowRank]) -> None:
    total = stack(updates)
    assert total.rank == sum(update.rank for update in updates)
    torch.testing.assert_close(total.dense(), sum(update.dense() for update in updates))


def test_stack_keeps_the_bits_of_half_precision() -> None:
    B, A = torch.randn(4, 2).bfloat16(), torch.randn(2, 3).bfloat16()
    total = stack([LowRank(B, A), LowRank(B, A)])
    assert total.B.dtype == torch.float32
    assert torch.equal(total.B[:, :2].bfloat16(), B)


@some
@given(pairs())
def test_core_space_loses_nothing(updates: list[LowRank]) -> None:
    for core in (core_space(updates), core_space(updates).principal()):
        for Q in (core.Q_B, core.Q_A):
            torch.testing.assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype), atol=1e-12, rtol=0)
        for update, M in zip(updates, core.cores, strict=True):
            torch.testing.assert_close(core.Q_B @ M @ core.Q_A.T, update.dense(), atol=1e-11, rtol=0)
            torch.testing.assert_close(core.join(M).dense(), update.dense(), atol=1e-11, rtol=0)


def test_principal_core_has_the_size_of_the_joint_rank() -> None:
    one = LowRank(torch.randn(9, 2), torch.randn(2, 7))
    assert core_space([one, one, one.scaled(2)]).cores.shape == (3, 6, 6)
    assert core_space([one, one, one.scaled(2)]).principal().cores.shape == (3, 2, 2)


@some
@given(pairs())
def test_squared_norm(updates: list[LowRank]) -> None:
    expected = stack(updates).dense().square().sum()
    assert squared_norm(stack(updates)) == pytest.approx(float(expected), rel=1e-10, abs=1e-20)


def test_squared_norm_survives_cancellation() -> None:
    update = LowRank(torch.randn(50, 3), torch.randn(3, 40))
    assert squared_norm(stack([update, update.scaled(-1)])) < 1e-24 * squared_norm(update)


def test_squared_norm_needs_no_large_matrix() -> None:
    width = 200_000
    assert squared_norm(LowRank(torch.ones(width, 1), torch.ones(1, width))) == pytest.approx(width**2)


def test_numerical_rank_counts_against_what_cancelled() -> None:
    assert numerical_rank(torch.zeros(3)) == numerical_rank(torch.zeros(0)) == 0
    rounding = torch.tensor([1e-16, 1e-17], dtype=torch.float64)
    assert numerical_rank(rounding) == 2
    assert numerical_rank(rounding, largest=1.0) == 0


@some
@given(pairs(), st.integers(1, 8))
def test_truncation_of_factors_is_the_best_one(updates: list[LowRank], rank: int) -> None:
    update = stack(updates)
    cut, kept = truncate(update, rank=rank)
    sigma = torch.linalg.svdvals(update.dense())
    energy, total = sigma[:rank].square().sum(), sigma.square().sum()
    assert cut.rank <= rank
    assert kept == pytest.approx(float(energy / total) if total > 0 else 1.0)
    error = (update.dense() - cut.dense()).square().sum()
    torch.testing.assert_close(error, total - energy, atol=1e-10, rtol=1e-8)


@some
@given(pairs(), st.floats(0.05, 1))
def test_truncation_keeps_the_energy_at_the_smallest_rank(updates: list[LowRank], energy: float) -> None:
    update = stack(updates)
    for form in (update, update.dense()):
        cut, kept = truncate(form, energy=energy)
        assert kept >= energy - 1e-9
        if cut.rank > 1:
            assert truncate(form, rank=cut.rank - 1)[1] < energy


@some
@given(pairs())
def test_truncation_without_a_limit_loses_nothing(updates: list[LowRank]) -> None:
    update = stack(updates)
    for form in (update, update.dense()):
        cut, kept = truncate(form)
        assert kept == pytest.approx(1.0)
        assert cut.rank == max(int(torch.linalg.matrix_rank(update.dense(), rtol=1e-9)), 1)
        torch.testing.assert_close(cut.dense(), update.dense(), atol=1e-10, rtol=0)


def test_truncated_factors_are_balanced_and_their_signs_settled() -> None:
    update = LowRank(torch.randn(9, 3, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64))
    cut, _ = truncate(update)
    torch.testing.assert_close(cut.B.norm(dim=0), cut.A.norm(dim=1))
    assert (cut.B.gather(0, cut.B.abs().argmax(0, keepdim=True)) > 0).all()
    other, _ = truncate(LowRank(-update.B.flip(1), -update.A.flip(0)))
    torch.testing.assert_close(other.B, cut.B)
    torch.testing.assert_close(truncate(update.dense())[0].B, cut.B)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subspace_iteration_finds_the_optimum_of_a_falling_spectrum(shape: tuple[int, int], dtype: torch.dtype) -> None:
    sigma = 1 / torch.arange(1, 301, dtype=torch.float64)
    cut, kept = truncate(spectrum(sigma, shape).to(dtype), rank=10)
    best = float(sigma[:10].square().sum() / sigma.square().sum())
    assert best - 1e-5 < kept < best + 1e-6
    assert cut.rank == 10


@pytest.mark.parametrize("limit", [{"rank": 10}, {"rank": 150}, {"energy": 0.1}, {"energy": 0.9}, {}])
def test_reported_energy_is_the_energy_kept_even_of_noise(limit: dict[str, float]) -> None:
    W = torch.randn(300, 320, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cut, kept = truncate(W, **limit)
    left = float((W - cut.dense()).square().sum() / W.square().sum())
    assert kept == pytest.approx(1 - left, abs=1e-9)
    sigma = torch.linalg.svdvals(W)
    best = float(sigma[: cut.rank].square().sum() / sigma.square().sum())
    assert best - 2e-3 < kept < best + 1e-9
    assert kept >= limit.get("energy", 0)


def test_energy_beyond_the_sketch_falls_back_to_the_exact_way() -> None:
    sigma = torch.ones(256, dtype=torch.float64)
    cut, kept = truncate(spectrum(sigma, (256, 256)), energy=0.75)
    assert cut.rank == 192
    assert kept == pytest.approx(0.75)


def test_both_limits_take_the_smaller_rank() -> None:
    W = spectrum(torch.tensor([3.0, 2, 1], dtype=torch.float64), (8, 6))
    assert truncate(W, rank=2, energy=0.99)[0].rank == 2
    assert truncate(W, rank=3, energy=0.5)[0].rank == 1


def test_truncation_is_deterministic() -> None:
    W = torch.randn(300, 300)
    first, second = truncate(W, rank=8)[0], truncate(W, rank=8)[0]
    assert torch.equal(first.B, second.B)
    assert torch.equal(first.A, second.A)
