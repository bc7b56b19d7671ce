"""RegMean++'s moments: those of the base model at the bottom, those of a really merged model everywhere."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.methods import regression
from tests import trained_adapters

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")


def moments(model, task_model, layers):
    """Uncentred second moments of each layer's inputs over the tokens that are text, one example at a time."""
    rows = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: rows[name].append(args[0][0]))
        for name in layers
    ]
    with torch.no_grad():
        for index in range(len(task_model.encodings)):
            model(**task_model.batch([index]))
    for handle in handles:
        handle.remove()
    stacked = {name: torch.cat(found).double() for name, found in rows.items()}
    return {name: x.T @ x / len(x) for name, x in stacked.items()}


@pytest.fixture(scope="module", params=["bert", "gpt2", "t5"])
def done(request, tiny_model, text_tasks, tmp_path_factory):
    """Everything that a merge was moments_seen, and its results."""
    root, base = tmp_path_factory.mktemp(request.param), tiny_model(request.param)
    for task in TASKS:
        trained_adapters.save(root / task, base, request.param, text_tasks)
    plan, models = trained_adapters.models("regmean++", [root / task for task in TASKS], base, samples=7)
    moments_seen = {}

    class Seen(SequentialMoments):
        def for_layer(self, layer, merged):
            moments_seen[layer] = super().for_layer(layer, merged)["second_moments"]
            sources = {self._sources[name] for name in self._sources if name not in merged}
            assert self._moments.keys() <= sources  # freed before others are collected
            return super().for_layer(layer, merged)

    layer_data = Seen(models, plan)
    results = list(merge_layers(plan, layer_data, plan.layers))
    return base, plan, models, moments_seen, results, layer_data


def test_results_come_in_the_order_asked_for_and_layers_run_in_the_models(done):
    base, plan, _, moments_seen, results, layer_data = done
    assert [layer.name for layer in results] == list(plan.layers)
    assert list(moments_seen) == list(layer_data.sequence)
    assert set(moments_seen) == set(plan.layers)
    if "t5" in str(base):
        assert "encoder" in layer_data.sequence[0]
        assert "decoder" in plan.layers[0]


def test_first_layers_see_what_regmean_sees(done):
    base, plan, models, moments_seen, results, layer_data = done
    first = layer_data.sequence[0]
    for index, model in enumerate(models):
        expected = moments(trained_adapters.bare(base, model.name), model, [first])[first]
        torch.testing.assert_close(moments_seen[first][index], expected, rtol=1e-4, atol=1e-7)
    updates = plan.read_updates(first, {"second_moments": moments_seen[first]})
    expected = regression.regmean(updates, plan.options).dense()
    found = next(layer.result for layer in results if layer.name == first).dense()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_every_layer_sees_the_merged_model(done):
    base, plan, models, moments_seen, results, _ = done
    for index, model in enumerate(models):
        whole = trained_adapters.bare(base, model.name)
        for layer in results:
            module, delta = whole.get_submodule(layer.name), layer.result.dense()
            module.weight.data += (delta.T if isinstance(module, Conv1D) else delta).float()
        expected = moments(whole, model, plan.layers)
        untouched = moments(trained_adapters.bare(base, model.name), model, plan.layers)
        changed = 0
        for name in plan.layers:
            scale = expected[name].norm()
            assert (moments_seen[name][index] - expected[name]).norm() / scale < 1e-4, name
            changed += bool((untouched[name] - expected[name]).norm() / scale > 1e-3)
        assert changed  # otherwise this would say nothing


def test_facts_name_the_examples(done):
    facts = done[-1].record["examples"]
    assert set(facts) == set(TASKS)
    assert facts["mood"]["examples"] == 7
    assert len(facts["mood"]["sha256"]) == 64
