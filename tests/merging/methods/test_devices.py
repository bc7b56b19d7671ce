"""Every rule on inputs of another device: nothing is made on the CPU and then mixed with them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream, truncate_rank
from osrm_cli.merging.methods import Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates, MaskedDelta
from osrm_cli.merging.methods.options import MethodOptions
from tests.fake_device import DEVICE, Elsewhere
from tests.merging.methods.strategies import EVERY, layer


def moved(updates: LayerUpdates) -> LayerUpdates:
    return replace(
        updates,
        deltas=tuple(LowRank(update.B.to(DEVICE), update.A.to(DEVICE)) for update in updates.deltas),
        second_moments=tuple(moment.to(DEVICE) for moment in updates.second_moments or ()),
        cross_moments=tuple(moment.to(DEVICE) for moment in updates.cross_moments or ()),
        drifts=tuple(drift.to(DEVICE) for drift in updates.drifts or ()),
        fisher=tuple(information.to(DEVICE) for information in updates.fisher or ()),
    )


def parts(result: LowRank | RowStream | MaskedDelta) -> list[Tensor]:
    if isinstance(result, MaskedDelta):
        return [result.unified, *result.masks]
    return [result.B, result.A] if isinstance(result, LowRank) else [result.dense()]


def test_the_pretended_device_refuses_what_an_accelerator_refuses() -> None:
    here = torch.randn(3, 3)
    with Elsewhere():
        there = here.to(DEVICE)
        assert (there.device, (2 * there + torch.tensor(1.0)).cpu().tolist()) == (DEVICE, (2 * here + 1).tolist())
        for mixed in (lambda: there @ here, lambda: there + torch.eye(3), lambda: torch.cat([there, here])):
            with pytest.raises(RuntimeError, match="tensors on two devices"):
                mixed()
        with pytest.raises(RuntimeError, match="a generator of the CPU"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())


@pytest.mark.parametrize("method", EVERY, ids=lambda row: row.name)
def test_rules_stay_where_their_inputs_are(method: Method) -> None:
    updates, options = layer((9, 7), [2, 0, 3]), MethodOptions(scale=0.5, density=0.4, rank=2)
    expected = parts(method.load()(updates, options))
    with Elsewhere():
        found = parts(method.load()(moved(updates), options))
        assert {part.device for part in found} == {DEVICE}
        assert [part.cpu().tolist() for part in found] == [part.tolist() for part in expected]


@pytest.mark.parametrize("limits", [{}, {"rank": 2}, {"energy": 0.9}], ids=["full", "rank", "energy"])
@pytest.mark.parametrize("dense", [False, True])
def test_truncation_stays_where_its_input_is(limits: dict[str, float], dense: bool) -> None:
    update = layer((70, 90), [5]).deltas[0]
    expected = truncate_rank(update.dense() if dense else update, **limits)
    with Elsewhere():
        there = LowRank(update.B.to(DEVICE), update.A.to(DEVICE))
        found = truncate_rank(there.dense() if dense else there, **limits)
        assert found[0].B.device == DEVICE
        assert (found[0].B.cpu().tolist(), found[1]) == (expected[0].B.tolist(), expected[1])


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_thresholds_of_many_entries_are_the_same_everywhere(name: str) -> None:
    updates, options, rule = layer((600, 600), [2, 3]), MethodOptions(density=0.2), find_method(name).load()
    expected = parts(rule(updates, options))
    with Elsewhere():
        found = parts(rule(moved(updates), options))
        assert {part.device for part in found} == {DEVICE}
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, expected, strict=True))
