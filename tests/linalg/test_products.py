import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.products import entrywise_product, factor_with_identity, kronecker_product

some = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def pairs(draw: st.DrawFn, same_shape: bool) -> tuple[LowRank, LowRank]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes = [(draw(st.integers(1, 7)), draw(st.integers(1, 7))) for _ in range(2)]
    shapes[1] = shapes[0] if same_shape else shapes[1]
    first, second = (
        LowRank(
            torch.randn(d_out, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, d_in, generator=generator, dtype=torch.float64),
        )
        for (d_out, d_in), rank in zip(shapes, (draw(st.integers(1, 4)), draw(st.integers(1, 4))), strict=True)
    )
    return first, second


@some
@given(pairs(same_shape=True))
def test_entrywise_product(pair: tuple[LowRank, LowRank]) -> None:
    first, second = pair
    product = entrywise_product(first, second)
    torch.testing.assert_close(product.dense(), first.dense() * second.dense())
    assert product.rank == min(first.rank * second.rank, *first.shape)


@some
@given(pairs(same_shape=False))
def test_kronecker_product(pair: tuple[LowRank, LowRank]) -> None:
    first, second = pair
    product = kronecker_product(first, second)
    torch.testing.assert_close(product.dense(), torch.kron(first.dense(), second.dense()))
    assert product.rank == first.rank * second.rank


def test_a_matrix_as_factors() -> None:
    for shape in ((3, 5), (5, 3), (4, 4)):
        W = torch.randn(*shape)
        factors = factor_with_identity(W)
        assert factors.rank == min(shape)
        assert torch.equal(factors.dense(), W)
