"""Moments of the single models' own inputs, for LOT Merging."""

import torch

from osrm_cli.merging.from_data.single_moments import SingleMoments
from osrm_cli.merging.merged_layer import merge_layers
from tests import trained_adapters
from tests.merging.from_data.test_sequential import inputs_of

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")


def test_moments_are_those_of_really_merged_single_models(made):
    root, base = made
    plan, models = trained_adapters.models("lot", [root / task for task in TASKS], base, samples=7)
    layer_data = SingleMoments(models, plan)
    for layer in layer_data.sequence:
        found = layer_data.for_layer(layer, {})["second_moments"]
        for task, model, C in zip(TASKS, models, found, strict=True):
            x = inputs_of(trained_adapters.dense(root / task, base, task), model, layer)
            expected = x.T @ x / len(x)
            assert (C - expected).norm() / expected.norm() < 1e-4, (task, layer)


def test_the_result_is_the_least_squares_solution_of_least_norm(made):
    """Solved again from the stacked tokens of the single models by another factorization."""
    root, base = made
    plan, models = trained_adapters.models("lot", [root / task for task in TASKS], base, samples=7)
    layer_data = SingleMoments(models, plan)
    results = {layer.name: layer.result for layer in merge_layers(plan, layer_data, plan.layers)}
    layer = layer_data.sequence[-1]
    inputs, outputs = [], []
    for task, model in zip(TASKS, models, strict=True):
        x = inputs_of(trained_adapters.dense(root / task, base, task), model, layer)
        inputs.append(x / len(x) ** 0.5)
        outputs.append(inputs[-1] @ model.delta(layer).dense().double().T)
    expected = torch.linalg.lstsq(torch.cat(inputs), torch.cat(outputs), rcond=3e-4, driver="gelsd").solution.T
    assert (results[layer].dense() - expected).norm() / expected.norm() < 1e-3
    assert layer_data.record["examples"]["pair"]["examples"] == 7
