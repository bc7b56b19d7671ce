"""Dropout with cheap masks: the same distribution, gradient and switches as PyTorch's."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import dropout

from osrm_cli.training.fast_dropout import SixteenBitDropout, use_fast_dropout

N = 200_000


@pytest.fixture(autouse=True)
def _entered() -> Iterator[None]:
    with SixteenBitDropout():
        yield


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_the_share_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(N + 3, dtype=dtype), p)
    kept = found != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=5 * (p * (1 - p) / N) ** 0.5)
    assert torch.equal(found[kept], torch.ones_like(found[kept]).div(1 - p))


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(N), 0.5) != 0).float() - 0.5
    for step in range(1, 9):  # four draws share a word
        assert abs(float((kept[step:] * kept[:-step]).mean())) < 5 * 0.25 / N**0.5


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(64, 65).requires_grad_()
    found = dropout(x.T, 0.3)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, found.T != 0)
    torch.testing.assert_close(x.grad * x, found.T)


def test_a_seed_repeats_the_mask_and_the_next_call_draws_another() -> None:
    def draw() -> torch.Tensor:
        return dropout(torch.ones(1000), 0.5)

    torch.manual_seed(7)
    first, second = draw(), draw()
    torch.manual_seed(7)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


def test_modules_use_it_in_training_only() -> None:
    layer, x = torch.nn.Dropout(0.5), torch.randn(1000)
    torch.manual_seed(1)
    found = layer(x)
    torch.manual_seed(1)
    assert torch.equal(found, dropout(x, 0.5))
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0).any()
    assert torch.equal(dropout(input=x, p=0.5, training=False), x)


def test_other_devices_keep_their_own_kernels() -> None:
    assert isinstance(use_fast_dropout(torch.device("cpu")), SixteenBitDropout)
    assert not isinstance(use_fast_dropout(torch.device("cuda")), SixteenBitDropout)
