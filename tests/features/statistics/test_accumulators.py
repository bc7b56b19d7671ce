import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.features.statistics import panels
from osrm_cli.features.statistics.table import find_statistic

D = 12
NAMES = ["mean", "samples", "second-moment"]


def examples(count=9, seed=0, dtype=torch.float32):
    """Ragged examples of one to six tokens, each ``(length, D)``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (count,), generator=generator).tolist()
    return [torch.randn(length, D, generator=generator).add(0.5).to(dtype) for length in lengths]


def batch(chosen, left, garbage=1e3):
    """Pad on one side with values that must not count."""
    longest = max(len(x) for x in chosen)
    x = torch.full((len(chosen), longest, D), garbage, dtype=chosen[0].dtype)
    mask = torch.zeros(len(chosen), longest, dtype=torch.bool)
    for row, tokens in enumerate(chosen):
        where = slice(longest - len(tokens), None) if left else slice(0, len(tokens))
        x[row, where], mask[row, where] = tokens, True
    return x, mask


def fed(name, data, order, size, left=False):
    accumulator = find_statistic(name).load()(D)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        accumulator.add(*batch([data[row] for row in rows], left), rows)
    return accumulator


def reference(name, data):
    tokens = torch.cat(data).double()
    if name == "mean":
        return tokens.mean(0)
    if name == "samples":
        return torch.stack([x.double().mean(0) for x in data])
    return torch.einsum("ni,nj->ij", tokens, tokens) / len(tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_the_dense_definition(name, dtype):
    data = examples(dtype=dtype)
    accumulator = fed(name, data, list(range(9)), 4)
    torch.testing.assert_close(accumulator.finalize(), reference(name, data), rtol=1e-12, atol=1e-12)
    assert (accumulator.tokens, accumulator.examples) == (sum(map(len, data)), 9)


@pytest.mark.parametrize("name", NAMES)
@given(order=st.permutations(range(9)), size=st.integers(1, 9), left=st.booleans())
@settings(deadline=None, max_examples=15)
def test_order_batches_and_padding_side_do_not_matter(name, order, size, left):
    data = examples()
    found = fed(name, data, order, size, left).finalize()
    torch.testing.assert_close(found, reference(name, data), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_shards_add_up_to_the_whole(name):
    data = examples()
    whole = fed(name, data, list(range(9)), 9)
    shards = [fed(name, data, list(range(shard, 9, 3)), 2) for shard in (2, 0, 1)]
    for shard in shards[1:]:
        shards[0].merge_state(shard.state())
    torch.testing.assert_close(shards[0].finalize(), whole.finalize(), rtol=1e-12, atol=1e-12)
    assert (shards[0].tokens, shards[0].examples) == (whole.tokens, whole.examples)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_goes_on_where_it_was(name):
    data = examples()
    half = fed(name, data, list(range(5)), 2)
    restored = find_statistic(name).load()(D)
    restored.merge_state(half.state())
    restored.merge_state(fed(name, data, list(range(5, 9)), 2).state())
    torch.testing.assert_close(restored.finalize(), reference(name, data), rtol=1e-12, atol=1e-12)
    assert restored.tokens == sum(map(len, data))


def test_the_second_moment_is_symmetric_across_blocks(monkeypatch):
    monkeypatch.setattr(panels, "MOMENT_COLUMNS", 5)
    data = examples()
    found = fed("second-moment", data, list(range(9)), 4).finalize()
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, reference("second-moment", data), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_without_tokens_counts_for_nothing(name):
    x, mask = torch.ones(2, 3, D), torch.tensor([[True, True, False], [False, False, False]])
    accumulator = find_statistic(name).load()(D)
    accumulator.add(x, mask, [0, 1])
    assert (accumulator.tokens, accumulator.examples) == (2, 1)
    assert torch.equal(accumulator.finalize(), reference(name, [torch.ones(2, D)]))


@pytest.mark.parametrize("name", ["mean", "second-moment"])
def test_memory_does_not_grow_with_samples(name):
    few, many = (fed(name, examples(count), list(range(count)), 4).state() for count in (4, 40))
    assert {key: value.shape for key, value in few.items()} == {key: value.shape for key, value in many.items()}
