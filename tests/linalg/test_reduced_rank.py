"""Truncation in the inputs' norm, beside a dense computation through the square root of the moment."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.reduced_rank import reduce_rank
from osrm_cli.linalg.row_stream import truncate_rank

some = settings(deadline=None, max_examples=25, derandomize=True)


def moment(d: int, seed: int, rows: int | None = None, fall: float = 3.0) -> torch.Tensor:
    """The second moment of inputs whose directions differ much in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows or 4 * d, d, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -fall, d, dtype=torch.float64).sqrt()
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    return turn @ (x.T @ x / len(x)) @ turn.T


def factors(d_out: int, d_in: int, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((d_out, rank), (rank, d_in))]
    return LowRank(*draw)


def seen(W: torch.Tensor, C: torch.Tensor) -> float:
    """``E ||W x||^2``."""
    return float(((W @ C) * W).sum())


def dense_reference(W: np.ndarray, C: np.ndarray, rank: int) -> np.ndarray:
    """``[W C^{1/2}]_k C^{-1/2}`` through the symmetric square root."""
    values, vectors = np.linalg.eigh(C)
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    U, S, Vh = np.linalg.svd(W @ root, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank] @ inverse


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize(("d_out", "d_in", "inner"), [(9, 12, 6), (14, 7, 7), (15, 15, 12)])
def test_equals_the_dense_reference(d_out: int, d_in: int, inner: int, rank: int) -> None:
    W, C = factors(d_out, d_in, inner, seed=1), moment(d_in, seed=2)
    expected = torch.from_numpy(dense_reference(W.dense().numpy(), C.numpy(), rank))
    kept = seen(expected, C) / seen(W.dense(), C)
    for update in (W, W.dense()):
        found, share = reduce_rank(update, C, rank)
        torch.testing.assert_close(found.dense(), expected, rtol=1e-8, atol=1e-8)
        assert found.rank == rank
        assert share == pytest.approx(kept, rel=1e-9)


@some
@given(st.integers(2, 10), st.integers(2, 10), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32))
def test_loses_least_of_what_inputs_see(d_out: int, d_in: int, inner: int, rank: int, seed: int) -> None:
    W, C = factors(d_out, d_in, inner, seed), moment(d_in, seed + 1)
    found, kept = reduce_rank(W, C, rank)
    loss, whole = seen(W.dense() - found.dense(), C), seen(W.dense(), C)
    assert loss <= seen(W.dense() - truncate_rank(W, rank)[0].dense(), C) + 1e-9 * whole
    assert loss == pytest.approx((1 - kept) * whole, abs=1e-8 * whole)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):  # no update of that rank nearby is better
        B, A = (tensor + 1e-2 * torch.randn(tensor.shape, generator=generator) for tensor in (found.B, found.A))
        assert loss <= seen(W.dense() - B @ A, C) + 1e-9 * whole


@some
@given(st.integers(2, 10), st.integers(2, 10), st.integers(1, 6), st.integers(0, 2**32))
def test_enough_rank_loses_nothing(d_out: int, d_in: int, inner: int, seed: int) -> None:
    W = factors(d_out, d_in, inner, seed)
    for C in (moment(d_in, seed), moment(d_in, seed, rows=1), torch.zeros(d_in, d_in)):
        for update in (W, W.dense()):
            found, kept = reduce_rank(update, C, 99)
            torch.testing.assert_close(found.dense(), W.dense(), rtol=1e-6, atol=1e-6)
            assert kept == pytest.approx(1)


@some
@given(st.integers(1, 4), st.floats(0.01, 100), st.integers(0, 2**32))
def test_scale_of_the_moment_does_not_matter(rank: int, scale: float, seed: int) -> None:
    W, C = factors(8, 6, 5, seed), moment(6, seed)
    torch.testing.assert_close(reduce_rank(W, scale * C, rank)[0].dense(), reduce_rank(W, C, rank)[0].dense())


def test_equal_directions_are_the_frobenius_norm() -> None:
    W = factors(9, 7, 5, seed=3)
    found, kept = reduce_rank(W, 2.5 * torch.eye(7), 3)
    expected, share = truncate_rank(W, 3)
    torch.testing.assert_close(found.dense(), expected.dense())
    assert kept == pytest.approx(share)


def test_directions_without_data_come_last() -> None:
    C = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    W = torch.diag(torch.tensor([1.0, 2.0, 30.0, 40.0], dtype=torch.float64))
    found, _ = reduce_rank(W, C, 2)
    torch.testing.assert_close(found.dense(), torch.diag(torch.tensor([1.0, 2.0, 0, 0], dtype=torch.float64)))
    found, _ = reduce_rank(W, C, 3)  # what nobody sees is cut as in the Frobenius norm
    torch.testing.assert_close(found.dense(), torch.diag(torch.tensor([1.0, 2.0, 0, 40.0], dtype=torch.float64)))


def test_energy_is_the_share_that_inputs_see() -> None:
    W, C = factors(12, 10, 8, seed=5), moment(10, seed=6)
    found, kept = reduce_rank(W, C, energy=0.9)
    assert kept >= 0.9
    assert reduce_rank(W, C, found.rank - 1)[1] < 0.9
    assert found.rank < truncate_rank(W, energy=0.9)[0].rank


def test_factors_are_balanced_whatever_the_scale() -> None:
    found, _ = reduce_rank(factors(12, 10, 8, seed=5).scaled(1e-3), 1e6 * moment(10, seed=6), 4)
    torch.testing.assert_close(found.B.norm(dim=0), found.A.norm(dim=1))


def test_nothing_stays_nothing() -> None:
    found, kept = reduce_rank(LowRank(torch.zeros(5, 2), torch.randn(2, 4)), moment(4, 0), 2)
    assert found.dense().abs().max() == 0
    assert kept == 1
