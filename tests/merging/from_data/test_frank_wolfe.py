"""Frank-Wolfe merging: the chosen models, the steps and the losses beside dense weights."""

import itertools

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from osrm_cli.merging.from_data.frank_wolfe import learn_simplex_weights
from tests import text_adapters, trained_adapters

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")


def opened(made, tasks=TASKS, **options):
    root, base = made
    return trained_adapters.models("frank-wolfe", [root / task for task in tasks], base, samples=10, **options)


def updates_of(made, plan):
    """``dW_t`` by task and layer, as the model holds weights, from adapters that PEFT merged."""
    root, base = made
    found = {}
    for task, layer in itertools.product(TASKS, plan.layers):
        whole, bare = trained_adapters.dense(root / task, base, task), trained_adapters.bare(base, task)
        found[task, layer] = whole.get_submodule(layer).weight.detach() - bare.get_submodule(layer).weight.detach()
    return found


def dense_loss(made, model, weights):
    """A task's mean loss with these weights in the model, one example at a time."""
    root, base = made
    whole = trained_adapters.dense(root / model.name, base, model.name)  # for its head
    losses = []
    for index, label in enumerate(model.labels):
        logits = functional_call(whole, weights, (), model.batch([index])).logits[0]
        if model.name == "score":
            losses.append((logits.squeeze() - label).square() / 2)
        else:
            losses.append(functional.cross_entropy(logits, torch.tensor(label)))
    return torch.stack(losses).mean()


def mixed(made, plan, updates, coefficients):
    _, base = made
    plain = trained_adapters.bare(base, "mood")
    return {
        f"{layer}.weight": plain.get_submodule(layer).weight.detach()
        + sum(coefficients[task][layer] * updates[task, layer] for task in TASKS)
        for layer in plan.layers
    }


def test_the_first_step_goes_to_the_model_with_the_least_inner_product(made):
    plan, models = opened(made, steps=1)
    weights, facts = learn_simplex_weights(models, plan, lambda _: None)
    updates = updates_of(made, plan)
    nothing = {task: dict.fromkeys(plan.layers, 0.0) for task in TASKS}
    start = {name: weight.requires_grad_() for name, weight in mixed(made, plan, updates, nothing).items()}
    losses = {model.name: dense_loss(made, model, start) for model in models}
    sum(losses.values()).backward()
    for layer in plan.layers:
        products = {task: float((start[f"{layer}.weight"].grad * updates[task, layer]).sum()) for task in TASKS}
        chosen = min(products, key=products.get)
        assert {task: weights[task][layer] for task in TASKS} == {task: float(task == chosen) for task in TASKS}
    for task in TASKS:
        assert facts["loss"][task]["before"] == pytest.approx(losses[task].item(), rel=1e-4)


def test_weights_are_convex_and_losses_those_of_dense_weights(made):
    plan, models = opened(made, steps=4, **{"lambda": 0.7})
    seen = []
    weights, facts = learn_simplex_weights(models, plan, seen.append)
    assert seen == [1] * 4
    for layer in plan.layers:
        found = [weights[task][layer] for task in TASKS]
        assert min(found) >= 0
        assert sum(found) == pytest.approx(0.7, rel=1e-5)
    with torch.no_grad():
        after = mixed(made, plan, updates_of(made, plan), weights)
        for model in models:
            assert facts["loss"][model.name]["after"] == pytest.approx(float(dense_loss(made, model, after)), rel=1e-3)


def test_more_steps_come_nearer(made):
    totals = []
    for steps in (1, 12):
        plan, models = opened(made, steps=steps)
        _, facts = learn_simplex_weights(models, plan, lambda _: None)
        totals.append(sum(row["after"] for row in facts["loss"].values()))
    assert totals[1] < totals[0]


def test_one_adapter_is_itself(made):
    plan, models = opened(made, ("pair",), steps=3)
    weights, _ = learn_simplex_weights(models, plan, lambda _: None)
    assert set(weights["pair"].values()) == {1.0}


def test_completions_count_per_token(tiny_writer, completion_tasks, tmp_path):
    base = tiny_writer("llama")
    text_adapters.save(tmp_path / "same", base, completion_tasks)
    plan, models = trained_adapters.models("frank-wolfe", [tmp_path / "same"], base, samples=6, steps=1)
    _, facts = learn_simplex_weights(models, plan, lambda _: None)
    whole = text_adapters.dense(tmp_path / "same", base)
    losses = []
    for encoding in models[0].encodings:
        ids, labels = (torch.as_tensor(encoding[name]).long()[None] for name in ("input_ids", "labels"))
        with torch.no_grad():
            losses.append(float(whole(input_ids=ids, labels=labels).loss))
    assert facts["loss"]["same"]["after"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
