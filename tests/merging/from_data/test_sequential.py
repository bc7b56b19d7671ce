"""Sequential merging: moments of really merged and single models, and the regression that they stand for."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from osrm_cli.linalg.reduced_rank import reduce_rank
from osrm_cli.merging.from_data.sequential import SequentialTargets
from osrm_cli.merging.merged_layer import merge_layers
from tests import trained_adapters

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")


def oriented(module):
    """The weight as ``(d_out, d_in)``, float64."""
    weight = module.weight.detach().double()
    return weight.T if isinstance(module, Conv1D) else weight


def inputs_of(model, task_model, layer):
    """The layer's inputs at every token that is text, one example at a time, ``(tokens, d_in)``."""
    rows = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: rows.append(args[0][0]))
    with torch.no_grad():
        for index in [index for batch in task_model.batches() for index in batch]:
            model(**task_model.batch([index]))
    handle.remove()
    return torch.cat(rows).double()


def with_results(base, task, results):
    """The base model with merged updates added to its weights."""
    model = trained_adapters.bare(base, task)
    for name, result in results.items():
        module = model.get_submodule(name)
        delta = (result if isinstance(result, torch.Tensor) else result.dense()).float()
        module.weight.data += delta.T if isinstance(module, Conv1D) else delta
    return model


def merged(root, base, **options):
    plan, models = trained_adapters.models("sequential", [root / task for task in TASKS], base, samples=7, **options)
    layer_data = SequentialTargets(models, plan)
    return plan, models, layer_data, {layer.name: layer for layer in merge_layers(plan, layer_data, plan.layers)}


@pytest.mark.parametrize("rank", [None, 2])
def test_every_layer_is_the_regression_on_the_single_models_outputs(made, rank):
    """Solved again from the tokens, with the layers below it merged: no moments, no hooks."""
    root, base = made
    _, models, layer_data, results = merged(root, base, ridge=0.1, **({"rank": rank} if rank else {}))
    order = layer_data.sequence
    for place in (0, 1, len(order) // 2, len(order) - 1):
        layer = order[place]
        below = {name: results[name].result for name in order[:place]}
        left, right, C = 0, 0, 0
        for task, model in zip(TASKS, models, strict=True):
            x = inputs_of(with_results(base, task, below), model, layer)
            whole = trained_adapters.dense(root / task, base, task)
            single = oriented(whole.get_submodule(layer))
            before = oriented(trained_adapters.bare(base, task).get_submodule(layer))
            y = inputs_of(whole, model, layer) @ single.T - x @ before.T
            C = C + x.T @ x / len(x)
            right = right + y.T @ x / len(x)
            left = left + single - before
        rho = 0.1 * C.diagonal().mean()
        update = (right + rho / 3 * left) @ torch.linalg.inv(C + rho * torch.eye(len(C)))
        found = results[layer].result
        expected = reduce_rank(update, C, rank or found.rank)[0].dense()
        assert (found.dense() - expected).norm() / expected.norm() < 1e-3, layer


def test_errors_of_the_layers_below_are_corrected(made):
    """The last layer's outputs come nearer to the single models' than with that layer's mean update."""
    root, base = made
    _, models, layer_data, results = merged(root, base, ridge=0.0)
    last = layer_data.sequence[-1]
    below = {name: layer.result for name, layer in results.items() if name != last}
    deltas = [model.delta(last).dense() for model in models]
    errors = []
    for update in (results[last].result.dense(), sum(deltas) / len(deltas)):
        error = 0.0
        for task, model in zip(TASKS, models, strict=True):
            whole = trained_adapters.dense(root / task, base, task)
            target = inputs_of(whole, model, last) @ oriented(whole.get_submodule(last)).T
            ours = with_results(base, task, {**below, last: update})
            error += float(
                (inputs_of(ours, model, last) @ oriented(ours.get_submodule(last)).T - target).square().mean()
            )
        errors.append(error)
    assert errors[0] < errors[1]


def test_one_adapter_is_itself(made):
    root, base = made
    plan, models = trained_adapters.models("sequential", [root / "mood"], base, samples=7)
    for layer in merge_layers(plan, SequentialTargets(models, plan), plan.layers):
        expected = models[0].delta(layer.name).dense().double()
        assert (layer.result.dense() - expected).norm() / expected.norm() < 1e-3


def test_the_record_names_the_texts(made):
    root, base = made
    _, _, layer_data, _ = merged(root, base)
    assert layer_data.record["examples"]["pair"]["examples"] == 7
