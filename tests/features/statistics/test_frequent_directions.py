import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.features.statistics.frequent_directions import FrequentDirections

D = 20


def tokens(n, seed=0, decay=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator, dtype=torch.float64) * torch.arange(1, D + 1).double() ** -decay


def sketched(X, size, batch=7):
    sketch = FrequentDirections(D, size)
    for start in range(0, len(X), batch):
        x = X[start : start + batch][:, None]
        sketch.add(x, torch.ones(len(x), 1, dtype=torch.bool), list(range(start, start + len(x))))
    return sketch


def check_bound(X, sketch):
    S = sketch.finalize()
    lacking = torch.linalg.eigvalsh(X.T @ X - S.T @ S)
    rounding = 1e-10 * X.norm() ** 2
    assert S.shape == (sketch.size, D)
    assert lacking.min() >= -rounding
    assert lacking.max() <= sketch.error + rounding
    assert sketch.error_bound() == {"error": sketch.error, "energy": pytest.approx(float(X.square().sum()))}
    values = torch.linalg.svdvals(X)
    for k in range(sketch.size):
        assert sketch.error <= values[k:].square().sum() / (sketch.size - k) + rounding


@given(n=st.integers(1, 300), size=st.integers(1, 24), decay=st.floats(0, 2), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_the_error_stays_under_its_bound(n, size, decay, seed):
    X = tokens(n, seed, decay)
    check_bound(X, sketched(X, size))


@pytest.mark.parametrize("shards", [2, 5])
def test_merged_shards_keep_the_bound(shards):
    X = tokens(200)
    parts = [sketched(X[shard::shards], 6) for shard in range(shards)]
    whole = FrequentDirections(D, 6)
    for part in parts:
        whole.merge_state(part.state())
    assert whole.tokens == 200
    check_bound(X, whole)


def test_batches_do_not_matter():
    X = tokens(100)
    one, other = sketched(X, 5, batch=1), sketched(X, 5, batch=64)
    torch.testing.assert_close(one.finalize(), other.finalize(), rtol=0, atol=0)
    assert one.error == other.error


def test_a_low_rank_is_kept_exactly():
    X = tokens(50)[:, :1] * tokens(1)
    S = sketched(X, 4).finalize()
    torch.testing.assert_close(S.T @ S, X.T @ X, rtol=1e-12, atol=1e-10)


def test_memory_does_not_grow():
    assert sketched(tokens(500), 4).state()["rows"].shape[0] <= 16
