"""Rows of a weight with an update added: rounded once, and nothing of what they are made from changes."""

import pytest
import torch

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.output.weight_parts import WeightPart


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_sum_is_rounded_once_and_alters_neither_weight_nor_update(kind, target, is_held, is_turned):
    draws = torch.Generator().manual_seed(0)
    factors = LowRank(torch.randn(700, 4, generator=draws), torch.randn(4, 900, generator=draws))
    shape = (900, 700) if is_turned else (700, 900)
    weight = torch.randn(shape, generator=draws).to(kind)
    dense = factors.B @ factors.A
    part = WeightPart("q", "q.weight", shape, is_turned, 0, slice(0, shape[0]))
    old, update = weight.clone(), RowStream.of(dense.clone()) if is_held else factors
    pieces = list(part.add(update, old.__getitem__, target))
    wide = torch.promote_types(kind, torch.float32)
    exact = weight.to(wide) + (dense.T if is_turned else dense)
    found = torch.cat(pieces)
    assert found.dtype == target
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, exact.to(found.dtype), rtol=eps, atol=1e-5)
    if is_held:  # the same products: equal to the last bit
        assert torch.equal(found, exact.to(found.dtype))
        assert torch.equal(update.dense(), dense)
    assert torch.equal(old, weight)
