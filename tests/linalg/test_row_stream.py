from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream


def factors(d_out: int, d_in: int, rank: int = 3, dtype: torch.dtype = torch.float32) -> LowRank:
    draws = torch.Generator().manual_seed(0)
    B = torch.randn(d_out, rank, generator=draws, dtype=dtype)
    return LowRank(B, torch.randn(rank, d_in, generator=draws, dtype=dtype))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 1), (70, 9000), (5, 200_000), (3000, 1000), (4, 0), (0, 4)])
def test_the_rows_of_a_product(shape: tuple[int, int], threads: int) -> None:
    stream = RowStream.of(factors(*shape))
    torch.testing.assert_close(stream.dense(), factors(*shape).dense())
    places = list(stream.blocks(lambda place, rows: (place, rows.shape)))
    assert [row for place, _ in places for row in range(place.start, place.stop)] == list(range(shape[0]))
    assert all(found == (place.stop - place.start, shape[1]) for place, found in places)
    strips = list(stream.strips(lambda _, rows: rows.clone()))
    assert torch.equal(torch.cat(strips) if strips else torch.empty(shape), stream.dense())


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    stream = RowStream.of(factors(900, 5000))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(stream.dense())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_squared_norm(dtype: torch.dtype) -> None:
    stream = RowStream.of(factors(300, 4000).to(dtype))
    assert stream.dtype == torch.promote_types(dtype, torch.float32)
    assert stream.squared_norm() == pytest.approx(float(stream.dense().double().square().sum()), rel=1e-6)


def test_a_matrix_is_a_stream_of_its_rows() -> None:
    W = torch.randn(50, 70).bfloat16()
    assert torch.equal(RowStream.of(W).dense(), W.float())
    assert replace(RowStream.of(W)).near is None
