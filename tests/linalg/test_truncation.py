import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from osrm_cli.linalg import row_stream
from osrm_cli.linalg.low_rank import LowRank, stack_factors
from osrm_cli.linalg.row_stream import NEAR, RowStream, truncate_rank
from tests.linalg.test_low_rank import pairs, some


def spectrum(sigma: Tensor, shape: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(d, len(sigma), generator=generator, dtype=torch.float64)).Q for d in shape)
    return U * sigma @ V.T


@some
@given(pairs(), st.integers(1, 8))
def test_truncation_of_factors_is_the_best_one(updates: list[LowRank], rank: int) -> None:
    update = stack_factors(updates)
    cut, kept = truncate_rank(update, rank=rank)
    sigma = torch.linalg.svdvals(update.dense())
    energy, total = sigma[:rank].square().sum(), sigma.square().sum()
    assert cut.rank <= rank
    assert kept == pytest.approx(float(energy / total) if total > 0 else 1.0)
    error = (update.dense() - cut.dense()).square().sum()
    torch.testing.assert_close(error, total - energy, atol=1e-10, rtol=1e-8)


@some
@given(pairs(), st.floats(0.05, 1))
def test_truncation_keeps_the_energy_at_the_smallest_rank(updates: list[LowRank], energy: float) -> None:
    update = stack_factors(updates)
    for form in (update, update.dense()):
        cut, kept = truncate_rank(form, energy=energy)
        assert kept >= energy - 1e-9
        if cut.rank > 1:
            assert truncate_rank(form, rank=cut.rank - 1)[1] < energy


@some
@given(pairs())
def test_truncation_without_a_limit_loses_nothing(updates: list[LowRank]) -> None:
    update = stack_factors(updates)
    for form in (update, update.dense()):
        cut, kept = truncate_rank(form)
        assert kept == pytest.approx(1.0)
        assert cut.rank == max(int(torch.linalg.matrix_rank(update.dense(), rtol=1e-9)), 1)
        torch.testing.assert_close(cut.dense(), update.dense(), atol=1e-10, rtol=0)


def test_truncated_factors_are_balanced_and_their_signs_settled() -> None:
    update = LowRank(torch.randn(9, 3, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64))
    cut, _ = truncate_rank(update)
    torch.testing.assert_close(cut.B.norm(dim=0), cut.A.norm(dim=1))
    assert (cut.B.gather(0, cut.B.abs().argmax(0, keepdim=True)) > 0).all()
    other, _ = truncate_rank(LowRank(-update.B.flip(1), -update.A.flip(0)))
    torch.testing.assert_close(other.B, cut.B)
    torch.testing.assert_close(truncate_rank(update.dense())[0].B, cut.B)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subspace_iteration_finds_the_optimum_of_a_falling_spectrum(shape: tuple[int, int], dtype: torch.dtype) -> None:
    sigma = 1 / torch.arange(1, 301, dtype=torch.float64)
    cut, kept = truncate_rank(spectrum(sigma, shape).to(dtype), rank=10)
    best = float(sigma[:10].square().sum() / sigma.square().sum())
    assert kept == pytest.approx(best, abs=1e-6)  # float32's own rounding
    assert cut.rank == 10


def test_a_slow_spectrum_keeps_what_an_exact_decomposition_keeps() -> None:
    sigma = torch.arange(1, 601, dtype=torch.float64) ** -0.5
    W, best = spectrum(sigma, (600, 700)), float(sigma[:16].square().sum() / sigma.square().sum())
    near, kept = truncate_rank(W, rank=16, tolerance=NEAR)[1], truncate_rank(W, rank=16)[1]
    assert best - kept < 1e-7
    assert 1e-6 < best - near < NEAR * (1 - best)


@pytest.mark.parametrize("limit", [{"rank": 10}, {"rank": 150}, {"energy": 0.1}, {"energy": 0.9}, {}])
def test_reported_energy_is_the_energy_kept_even_of_noise(limit: dict[str, float]) -> None:
    W = torch.randn(300, 320, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cut, kept = truncate_rank(W, **limit)
    left = float((W - cut.dense()).square().sum() / W.square().sum())
    assert kept == pytest.approx(1 - left, abs=1e-9)
    sigma = torch.linalg.svdvals(W)
    best = float(sigma[: cut.rank].square().sum() / sigma.square().sum())
    assert best - 1e-6 < kept < best + 1e-9
    assert kept >= limit.get("energy", 0)


def test_energy_beyond_the_sketch_falls_back_to_the_exact_way() -> None:
    sigma = torch.ones(256, dtype=torch.float64)
    cut, kept = truncate_rank(spectrum(sigma, (256, 256)), energy=0.75)
    assert cut.rank == 192
    assert kept == pytest.approx(0.75)


def test_both_limits_take_the_smaller_rank() -> None:
    W = spectrum(torch.tensor([3.0, 2, 1], dtype=torch.float64), (8, 6))
    assert truncate_rank(W, rank=2, energy=0.99)[0].rank == 2
    assert truncate_rank(W, rank=3, energy=0.5)[0].rank == 1


def test_truncation_is_deterministic() -> None:
    W = torch.randn(300, 300)
    first, second = truncate_rank(W, rank=8)[0], truncate_rank(W, rank=8)[0]
    assert torch.equal(first.B, second.B)
    assert torch.equal(first.A, second.A)


def formed(matrix: Tensor, near: LowRank | None = None) -> RowStream:
    """The rows of a matrix, none of which is held for whoever asks for them."""
    d_out, d_in = matrix.shape
    return RowStream((d_out, d_in), matrix.dtype, matrix.device, lambda place: matrix[place].clone(), near)


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    passes: list[int] = []
    one_pass = row_stream._run_krylov_pass
    monkeypatch.setattr(row_stream, "_run_krylov_pass", lambda *given: passes.append(1) or one_pass(*given))
    return passes


def best_share(W: Tensor, rank: int) -> float:
    energies = torch.linalg.svdvals(W.double()).square()
    return float(energies[:rank].sum() / energies.sum())


def noisy(rank: int, size: int, noise: float, dtype: torch.dtype = torch.float32) -> tuple[LowRank, Tensor]:
    """Factors, and their product with noise of that size beside each entry's own."""
    draws = torch.Generator().manual_seed(0)
    B, A = torch.randn(size, rank, generator=draws), torch.randn(rank, size, generator=draws)
    W = B @ A + noise * rank**0.5 * torch.randn(size, size, generator=draws)
    return LowRank(B.to(dtype), A.to(dtype)), W.to(dtype)


@pytest.mark.parametrize("shape", [(400, 3000), (3000, 400)])
def test_a_stream_is_truncated_without_being_held(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    W = spectrum(0.9 ** torch.arange(300, dtype=torch.float64), shape).float()
    expected, kept = truncate_rank(W, rank=10)
    monkeypatch.setattr(RowStream, "dense", None)
    found, share = truncate_rank(formed(W), rank=10)
    assert share == pytest.approx(kept) == pytest.approx(1 - 0.9**20, abs=1e-5)
    torch.testing.assert_close(found.dense(), expected.dense())


def test_a_likeness_spares_passes_and_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    likeness, W = noisy(12, 1500, 0.03, torch.float64)
    passes = count_passes(monkeypatch)
    alone = truncate_rank(W, rank=12)[1]
    without = len(passes)
    assert truncate_rank(formed(W, likeness), rank=12)[1] == pytest.approx(alone, abs=1e-6)
    assert len(passes) < 2 * without


@pytest.mark.parametrize("rank", [12, 24])
def test_one_pass_near_a_likeness_keeps_nearly_the_best_and_says_truly_what(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    likeness, W = noisy(24, 1200, 1.0)
    passes = count_passes(monkeypatch)
    cut, kept = truncate_rank(formed(W, likeness), rank=rank, tolerance=NEAR)
    left = float((W - cut.dense()).double().square().sum() / W.double().square().sum())
    best = best_share(W, rank)
    assert len(passes) == 1
    assert kept == pytest.approx(1 - left, abs=1e-6)
    assert best - NEAR * (1 - best) < kept < best + 1e-6


@pytest.mark.parametrize("strength", [1.0, 3.0, 30.0])
def test_a_likeness_that_misleads_costs_passes_alone(strength: float) -> None:
    likeness, W = noisy(16, 800, 1.0)
    U, V = (torch.linalg.qr(torch.randn(800, 4, generator=torch.Generator().manual_seed(seed))).Q for seed in (1, 2))
    W = W + strength * torch.linalg.matrix_norm(W, 2) * U @ V.T
    best = best_share(W, 8)
    assert best - truncate_rank(formed(W, likeness), rank=8, tolerance=NEAR)[1] < NEAR * (1 - best)


def test_directions_of_which_one_pass_knows_too_little_are_not_made_up() -> None:
    W = spectrum(10.0 ** -torch.arange(0, 6, 0.125, dtype=torch.float64), (800, 900)).float()
    cut, kept = truncate_rank(formed(W), rank=16, tolerance=NEAR)
    left = float((W - cut.dense()).double().square().sum() / W.double().square().sum())
    assert 1 - kept == pytest.approx(left, rel=0.01)
    assert left == pytest.approx(1 - best_share(W, 16), rel=0.01)
