import math

import peft
import pytest
import torch

from osrm_cli.initialization.objectives.layer_problem import LayerProblem
from osrm_cli.initialization.objectives.random_baselines import gaussian, kaiming, last_coordinates, random_orthonormal
from osrm_cli.linalg import subspaces

RANK, D = 8, 512


def request(**changes):
    return LayerProblem(**{"rank": RANK, "d_in": D, "layer": "l", "task": "t", "seed": 0} | changes)


@pytest.mark.parametrize(("start", "setting"), [(kaiming, True), (gaussian, "gaussian")])
def test_has_the_distribution_of_pefts_start(start, setting):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=setting)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(D, 4)), config)
    theirs = model.base_model.model[0].lora_A["default"].weight.detach().double().flatten()
    ours = start(request()).flatten()
    # 4096 draws: a quantile of either start is known to about a twentieth of the spread.
    levels = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    spread = theirs.std()
    assert (ours.quantile(levels) - theirs.quantile(levels)).abs().max() < 0.1 * spread
    assert (ours.abs().max() <= 1 / math.sqrt(D)) == (setting is True)


def test_draws_differ_by_seed_task_and_layer():
    for start in (kaiming, gaussian, random_orthonormal):
        variants = [start(request(**change)) for change in ({}, {"seed": 1}, {"task": "u"}, {"layer": "m"})]
        for one in range(4):
            for other in range(one):
                assert not torch.allclose(variants[one], variants[other])


def test_last_coordinates_are_the_same_for_all():
    A = last_coordinates(request())
    assert torch.equal(A[:, -RANK:], torch.eye(RANK, dtype=A.dtype))
    assert float(A.abs().sum()) == RANK
    assert torch.equal(A, last_coordinates(request(seed=1, task="u", layer="m")))


def test_orthonormal_rows_keep_the_span_and_survive_dependent_rows():
    A = torch.tensor([[2.0, 0, 0], [1, -3, 0]], dtype=torch.float64)
    torch.testing.assert_close(subspaces.orthonormal_rows(A), torch.tensor([[1.0, 0, 0], [0, -1, 0]]).double())
    twice = subspaces.orthonormal_rows(torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(twice @ twice.T, torch.eye(2, dtype=torch.float64))
