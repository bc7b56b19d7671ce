"""Equality with PEFT's own merging functions, where PEFT is right, on the dense updates."""

from dataclasses import replace

import pytest
import torch
from peft.utils.merge_utils import magnitude_prune, task_arithmetic, ties

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.methods import find_method
from tests.merging.methods.strategies import close, layer, merge


@pytest.mark.parametrize("weight", [1.0, 0.6])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_element_rules_equal_peft(weight: float, density: float) -> None:
    several = layer((80, 31), [3, 4, 2])
    updates = [dW.dense() for dW in several.deltas]
    weights = torch.full((3,), weight)
    weighted = replace(several, weights=(weight,) * 3)
    close(merge(find_method("ties"), weighted, density=density), ties(updates, weights, density).double(), within=1e-6)
    close(
        merge(find_method("magnitude"), weighted, density=density), magnitude_prune(updates, weights, density).double()
    )
    close(merge(find_method("task-arith"), weighted), task_arithmetic(updates, weights).double())


def test_peft_elects_before_weighting_and_here_weights_come_first() -> None:
    one, other = (LowRank(torch.tensor([[value]]), torch.ones(1, 1)) for value in (3.0, -2.0))
    several = replace(layer((1, 1), [1, 1]), deltas=(one, other), weights=(0.5, 2.0))
    with pytest.warns(UserWarning, match="no pruning"):
        theirs = ties([one.dense(), other.dense()], torch.tensor(several.weights), 1.0)
    assert theirs.item() == pytest.approx(1.5)
    assert merge(find_method("ties"), several, density=1.0).item() == pytest.approx(-4.0)
