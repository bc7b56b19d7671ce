import pytest
import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods import sparsify
from osrm_cli.merging.methods.elementwise import stack_update_rows
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.merging.methods.sparsify import (
    SAMPLE,
    RowFilter,
    drop_by_magnitude,
    drop_randomly,
    drop_tails,
    keep_largest,
)


def wide(d_out: int = 600, d_in: int = 601) -> LowRank:
    """More entries than the bracket's sample, and rows that do not divide into blocks."""
    generator = torch.Generator().manual_seed(0)
    return LowRank(torch.randn(d_out, 3, generator=generator), torch.randn(3, d_in, generator=generator))


def as_update(values: Tensor) -> LowRank:
    return LowRank(values, torch.eye(values.shape[1]))


def kept_of(update: LowRank, keep: RowFilter) -> Tensor:
    """What the filter keeps of the update, ``(d_out, d_in)``."""
    return stack_update_rows([update], [keep]).then(lambda _, blocks: blocks[0]).dense()


@pytest.mark.parametrize("density", [0.0001, 0.1, 0.2, 0.5, 0.9, 0.99999, 1.0])
def test_exactly_the_largest_are_kept(density: float) -> None:
    entries = RowStream.of(wide()).dense()
    kept = kept_of(wide(), keep_largest(wide(), density))
    count = max(int(density * entries.numel()), 1)
    assert int((kept != 0).sum()) == count
    assert kept.abs()[kept != 0].min() >= entries.abs().flatten().sort().values[-count]


@pytest.mark.parametrize(
    "values", [torch.ones(600, 600), torch.randint(0, 3, (600, 600)).float(), torch.zeros(600, 600)]
)
def test_equal_entries_stay_together(values: Tensor) -> None:
    kept = kept_of(as_update(values), keep_largest(as_update(values), 0.3))
    threshold = values.flatten().sort().values[-108000]
    assert torch.equal(kept, values * (values >= threshold))


def test_sorted_entries_do_not_mislead_the_sample() -> None:
    values = torch.arange(1.0, 360001).reshape(600, 600)
    kept = kept_of(as_update(values), keep_largest(as_update(values), 0.2))
    assert torch.equal(kept.flatten().nonzero().flatten(), torch.arange(288000, 360000))


def test_entries_that_the_sample_misses_are_found() -> None:
    values = torch.arange(1.0, 360001)
    values[:: len(values) // SAMPLE | 1] = 0
    kept = kept_of(as_update(values.reshape(600, 600)), keep_largest(as_update(values.reshape(600, 600)), 0.2))
    assert torch.equal(kept.flatten(), values * (values >= values.sort().values[-72000]))


def test_more_entries_near_the_threshold_than_the_sample_promises() -> None:
    """They outgrow the room that is made for them."""
    seen = torch.arange(1.0, 360001)
    values = 280000 + seen.remainder(9973)
    step = len(values) // SAMPLE | 1
    values[::step] = seen[::step]
    update = as_update(values.reshape(600, 600))
    kept = kept_of(update, keep_largest(update, 0.2))
    assert torch.equal(kept.flatten(), values * (values >= values.sort().values[-72000]))


def test_both_tails_are_dropped() -> None:
    values = torch.arange(1.0, 101).reshape(10, 10)
    kept = kept_of(as_update(values), drop_tails(as_update(values), 0.5, 0.1))
    assert torch.equal(kept.flatten().nonzero().flatten(), torch.arange(40, 90))


@pytest.mark.parametrize("outliers", [0.0001, 0.01, 0.3])
def test_both_tails_of_many_entries_are_found_in_one_pass(outliers: float, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    count_once = sparsify._count_magnitudes
    monkeypatch.setattr(sparsify, "_count_magnitudes", lambda *given: passes.append(1) or count_once(*given))
    entries = RowStream.of(wide()).dense()
    kept = kept_of(wide(), drop_tails(wide(), 0.2, outliers))
    order = entries.abs().flatten().sort().values
    dropped, count = int(outliers * len(order)), int(0.2 * len(order))
    assert len(passes) == 1
    assert int((kept != 0).sum()) == count
    assert kept.abs().max() <= order[-dropped - 1]
    assert kept.abs()[kept != 0].min() >= order[-dropped - count]


def test_outliers_give_way_to_density() -> None:
    values = torch.arange(1.0, 101).reshape(10, 10)
    kept = kept_of(as_update(values), drop_tails(as_update(values), 0.95, 0.1))
    assert torch.equal(kept.flatten().nonzero().flatten(), torch.arange(95))


def test_random_drop_keeps_its_share_and_rescales() -> None:
    entries = RowStream.of(wide()).dense()
    kept = kept_of(wide(), drop_randomly(MethodOptions(density=0.3), "layer", "a"))
    assert (kept != 0).float().mean() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(kept[kept != 0], entries[kept != 0] / 0.3)


@pytest.mark.parametrize(("density", "low", "high"), [(0.5, 0.35, 0.65), (0.2, 0.1, 0.3), (0.9, 0.8, 1.0), (1.0, 1, 1)])
def test_larger_entries_are_kept_more_often(density: float, low: float, high: float) -> None:
    values = torch.arange(1.0, 101).repeat(4000, 1)
    kept = kept_of(as_update(values), drop_by_magnitude(MethodOptions(density=density, window=0.3), "layer", "a"))
    share = (kept != 0).float().mean(0)
    assert share[:10].mean() == pytest.approx(low, abs=0.02)
    assert share[-10:].mean() == pytest.approx(high, abs=0.02)
    assert kept.mean(0)[50:].mean() == pytest.approx(float(values.mean(0)[50:].mean()), rel=0.01)
