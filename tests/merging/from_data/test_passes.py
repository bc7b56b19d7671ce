"""Passes that wait before each layer are the passes that begin anew for each."""

import pytest
import torch

from osrm_cli.merging.from_data.passes import LayerwisePasses
from tests import trained_adapters

torch.set_num_threads(1)


@pytest.fixture
def model(made):
    root, base = made
    plan, models = trained_adapters.models("sequential", [root / "mood", root / "pair"], base, samples=20)
    return models[0], plan.layers


def run_through(model, layers, can_wait):
    """Every distinct input, with an update of each layer that is added once its inputs were seen."""
    changes = {}
    passes = LayerwisePasses(model, layers, changes, can_wait)
    seen = {}
    for source in passes.inputs.distinct:
        seen[source] = [x[mask] for x, mask in passes.run_to(source)]
        assert not torch.is_inference_mode_enabled()
        for name, other in passes.inputs.sources.items():
            if other == source:
                changes[name] = lambda _, y: 3 * y + 0.1
    return seen


def test_waiting_passes_see_what_whole_passes_see(model):
    model, layers = model
    whole, waiting = (run_through(model, layers, can_wait) for can_wait in (False, True))
    assert list(whole) == list(waiting)
    for source, batches in whole.items():
        assert len(batches) == len(model.batches()) > 1
        for expected, found in zip(batches, waiting[source], strict=True):
            torch.testing.assert_close(found, expected)


def test_changes_reach_the_layers_above(model):
    model, layers = model
    changed = run_through(model, layers, True)
    passes = LayerwisePasses(model, layers, {})
    unchanged = {source: [x[mask] for x, mask in passes.run_to(source)] for source in passes.inputs.distinct}
    first, last = passes.inputs.distinct[0], passes.inputs.distinct[-1]
    torch.testing.assert_close(changed[first], unchanged[first])
    assert (changed[last][0] - unchanged[last][0]).norm() / unchanged[last][0].norm() > 1e-3


@pytest.mark.parametrize("can_wait", [True, False])
def test_all_layers_take_one_pass_where_passes_wait(model, can_wait):
    model, layers = model
    passes = LayerwisePasses(model, layers, {}, can_wait)
    sources, runs = passes.inputs.distinct, []
    handle = model.with_head_loaded().get_submodule(sources[0]).register_forward_hook(lambda *_: runs.append(1))
    for source in sources:
        list(passes.run_to(source))
    handle.remove()
    assert len(runs) == len(model.batches()) * (1 if can_wait else len(sources) - 1)


def test_nothing_stays_on_the_model(model):
    model, layers = model
    shell = model.with_head_loaded()
    before = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in shell.modules()]
    run_through(model, layers, True)
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in shell.modules()] == before


@pytest.mark.parametrize("made", ["bert"], indirect=True)
def test_a_module_that_runs_more_than_once_is_seen_every_time(model):
    model, layers = model
    query = next(name for name in layers if name.endswith("query"))
    blocks = model.with_head_loaded().get_submodule(query.rpartition(".attention")[0].rpartition(".")[0])
    blocks[1] = blocks[0]
    passes = LayerwisePasses(model, [query], {})
    assert passes.inputs.calls == {query: 2}
    first, second, *_ = (x for x, _ in passes.run_to(query))
    assert first.shape == second.shape
    assert not torch.equal(first, second)
