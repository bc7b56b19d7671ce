"""AdaMerging: coefficients, entropy and gradients beside dense weights."""

import dataclasses
import itertools

import pytest
import torch
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from osrm_cli.merging.from_data import adamerging
from osrm_cli.merging.from_data.adamerging import AdaMergingDeltas
from tests import trained_adapters

torch.set_num_threads(1)
TASKS = ("mood", "pair")


def options(**given):
    return {"samples": 10, "steps": 20, "lambda": 0.4, **given}


def dense_entropy(root, base, task_model, coefficients, plan, indices):
    """Entropy of the model whose dense weights are the mixture, with gradients through the weights."""
    model = trained_adapters.dense(root / task_model.name, base, task_model.name)  # for its head
    plain = trained_adapters.bare(base, task_model.name)
    parts = [trained_adapters.dense(root / task, base, task) for task in TASKS]
    weights = {}
    for (column, layer), (row, part) in itertools.product(enumerate(plan.layers), enumerate(parts)):
        weight = plain.get_submodule(layer).weight.detach()
        update = part.get_submodule(layer).weight.detach() - weight
        name = f"{layer}.weight"
        weights[name] = weights.get(name, weight) + coefficients[row, column] * plan.weight(row, layer) * update
        assert isinstance(plain.get_submodule(layer), Conv1D) == ("gpt2" in str(base))
    # One example at a time: what padding does is not part of the reference.
    logits = [functional_call(model, weights, (), task_model.batch([index])).logits for index in indices]
    p = torch.cat(logits).softmax(-1)
    return -(p * p.log()).sum(-1)


def test_entropy_and_its_gradient_are_those_of_dense_weights(made):
    root, base = made
    plan, models = trained_adapters.models("adamerging", [root / task for task in TASKS], base, **options())
    mixture = AdaMergingDeltas(models, plan)
    with torch.no_grad():
        mixture.coefficients += 0.3 * torch.randn(2, len(plan.layers), generator=torch.Generator().manual_seed(1))
    for model in models:
        ours = adamerging.prediction_entropy(model, mixture, [0, 3, 5])
        copy = mixture.coefficients.detach().clone().requires_grad_()
        theirs = dense_entropy(root, base, model, copy, plan, [0, 3, 5])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        (grad,) = torch.autograd.grad(ours.mean(), mixture.coefficients)
        (expected,) = torch.autograd.grad(theirs.mean(), copy)
        assert expected.abs().max() > 1e-6
        assert (grad - expected).norm() / expected.norm() < 1e-3


def test_the_start_is_task_arithmetic_at_lambda(made):
    root, base = made
    plan, models = trained_adapters.models("adamerging", [root / task for task in TASKS], base, **options())
    assert AdaMergingDeltas(models, plan).coefficients.unique().tolist() == pytest.approx([0.4])
    _, facts = adamerging.learn_weights_by_entropy(models, plan, lambda _: None)
    flat = torch.full((2, len(plan.layers)), 0.4)
    for model in models:
        everything = list(range(len(model.encodings)))
        with torch.no_grad():
            start = dense_entropy(root, base, model, flat, plan, everything).mean()
        assert facts["entropy"][model.name]["before"] == pytest.approx(float(start), rel=1e-4)


def test_entropy_falls_step_by_step(made):
    root, base = made
    plan, models = trained_adapters.models("adamerging", [root / task for task in TASKS], base, **options(steps=40))
    seen = []
    weights, facts = adamerging.learn_weights_by_entropy(models, plan, seen.append)
    assert seen == [1] * 40
    before, after = (sum(row[when] for row in facts["entropy"].values()) for when in ("before", "after"))
    assert after < before
    found = [value for row in weights.values() for value in row.values()]
    assert len(set(found)) > 1
    assert max(abs(value - 0.4) for value in found) <= 60e-3  # Adam moves by about its rate


def test_weights_scale_the_updates_before(made):
    root, base = made
    plan, models = trained_adapters.models("adamerging", [root / task for task in TASKS], base, **options(steps=1))
    heavy = dataclasses.replace(plan.recipe.adapters[0], weight=2.0)
    recipe = dataclasses.replace(plan.recipe, adapters=(heavy, plan.recipe.adapters[1]))
    weights, _ = adamerging.learn_weights_by_entropy(models, dataclasses.replace(plan, recipe=recipe), lambda _: None)
    assert all(abs(value - 0.8) < 3e-3 for value in weights["mood"].values())
    assert all(abs(value - 0.4) < 2e-3 for value in weights["pair"].values())


def test_no_label_is_read(made):
    """Other labels, the same weights."""
    root, base = made
    plan, models = trained_adapters.models("adamerging", [root / task for task in TASKS], base, **options(steps=3))
    blind = []
    for model in models:
        data = model.sample.data
        unlabelled = tuple(dataclasses.replace(example, label=None) for example in data.examples)
        sample = dataclasses.replace(model.sample, data=dataclasses.replace(data, examples=unlabelled))
        blind.append(dataclasses.replace(model, sample=sample))
    first, _ = adamerging.learn_weights_by_entropy(models, plan, lambda _: None)
    assert adamerging.learn_weights_by_entropy(blind, plan, lambda _: None)[0] == first
