"""Fisher information by hooks beside autograd on dense weights, one example and one weight at a time."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from osrm_cli.merging.from_data import fisher
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.progress import no_progress
from tests import trained_adapters

torch.set_num_threads(1)


def naive(model, task_model, layers):
    """The definition: PEFT's merged model, autograd with respect to each dense weight."""
    modules = {name: model.get_submodule(name) for name in layers}
    model.requires_grad_(False)
    for module in modules.values():
        module.weight.requires_grad_(True)
    total = {name: torch.zeros(module.weight.shape, dtype=torch.float64) for name, module in modules.items()}
    examples = task_model.sample.data.examples
    for index, example in enumerate(examples):
        logits = model(**task_model.batch([index])).logits
        if model.config.num_labels == 1:
            loss = 0.5 * functional.mse_loss(logits[0, 0], torch.tensor(float(example.label)))
        else:
            loss = -logits[0].log_softmax(-1)[example.label]
        grads = torch.autograd.grad(loss, [module.weight for module in modules.values()], allow_unused=True)
        for name, grad in zip(modules, grads, strict=True):
            total[name] += grad.double().square()
    turned = {name: isinstance(module, Conv1D) for name, module in modules.items()}
    return {name: (x.T if turned[name] else x) / len(examples) for name, x in total.items()}


@pytest.fixture(scope="module", params=["bert", "gpt2", "t5"])
def made(request, tiny_model, text_tasks, tmp_path_factory):
    root, base = tmp_path_factory.mktemp(request.param), tiny_model(request.param)
    for task in trained_adapters.LABELS:
        trained_adapters.save(root / task, base, request.param, text_tasks)
    return root, base


@pytest.mark.parametrize("task", trained_adapters.LABELS)
def test_equal_to_autograd_on_the_dense_weights(made, task):
    root, base = made
    plan, models = trained_adapters.models("fisher", [root / name for name in trained_adapters.LABELS], base, samples=6)
    model = next(model for model in models if model.name == task)
    shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
    seen = []
    found = fisher.fisher_diagonal(model, shapes, seen.append)
    assert seen == [1] * 6
    expected = naive(trained_adapters.dense(root / task, base, task), model, plan.layers)
    for name in plan.layers:
        assert found[name].shape == shapes[name]
        assert expected[name].max() > 0
        error = (found[name].double() - expected[name]).norm() / expected[name].norm()
        assert error < 3e-5, name  # two computations in float32


def test_layers_that_an_adapter_does_not_change_are_measured_too(tiny_model, text_tasks, tmp_path):
    base = tiny_model("bert")
    trained_adapters.save(tmp_path / "mood", base, "bert", text_tasks, target_modules=["query"])
    trained_adapters.save(tmp_path / "pair", base, "bert", text_tasks)
    plan, models = trained_adapters.models("fisher", [tmp_path / "mood", tmp_path / "pair"], base, samples=3)
    shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
    found = fisher.fisher_diagonal(models[0], shapes, lambda _: None)
    expected = naive(trained_adapters.dense(tmp_path / "mood", base, "mood"), models[0], plan.layers)
    value = next(name for name in plan.layers if name.endswith("value"))
    torch.testing.assert_close(found[value].double(), expected[value], rtol=1e-4, atol=1e-10)


def test_merged_by_the_formula_in_float64(tiny_model, text_tasks, tmp_path):
    base = tiny_model("bert")
    for task in ("mood", "pair"):
        trained_adapters.save(tmp_path / task, base, "bert", text_tasks)
    plan, models = trained_adapters.models(
        "fisher", [tmp_path / "mood", tmp_path / "pair"], base, samples=4, **{"lambda": 0.7}
    )
    shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
    (tmp_path / "files").mkdir()
    layer_data = fisher.FisherInformation(models, shapes, tmp_path / "files", no_progress)
    dense = {model.name: trained_adapters.dense(tmp_path / model.name, base, model.name) for model in models}
    plain = trained_adapters.bare(base, "mood")
    info = {model.name: naive(dense[model.name], model, plan.layers) for model in models}
    for task, measured in info.items():
        norm = torch.cat([x.flatten() for x in measured.values()]).norm()
        assert layer_data.record["fisher_norms"][task] == pytest.approx(float(norm), rel=1e-4)
        info[task] = {name: x / norm for name, x in measured.items()}
    whole = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, output="model"))
    for layer in merge_layers(whole, layer_data, plan.layers):
        weight = plain.get_submodule(layer.name).weight.detach().double()
        updates = {
            name: model.get_submodule(layer.name).weight.detach().double() - weight for name, model in dense.items()
        }
        top = sum(info[name][layer.name] * update for name, update in updates.items())
        expected = 0.7 * top / sum(info[name][layer.name] for name in updates)
        assert (layer.result.dense().double() - expected).norm() / expected.norm() < 1e-4


def test_every_task_has_the_same_say(tiny_model, text_tasks, tmp_path):
    """Each task has the same norm over all layers, whatever its loss and its numbers are."""
    base = tiny_model("bert")
    for task in ("pair", "score"):
        trained_adapters.save(tmp_path / task, base, "bert", text_tasks)
    plan, models = trained_adapters.models("fisher", [tmp_path / "pair", tmp_path / "score"], base, samples=4)
    shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
    (tmp_path / "files").mkdir()
    layer_data = fisher.FisherInformation(models, shapes, tmp_path / "files", no_progress)
    parts = [layer_data.for_layer(name, {})["fisher"] for name in plan.layers]
    for index in range(2):
        assert sum(float(each[index].double().square().sum()) for each in parts) == pytest.approx(1.0, rel=1e-5)
