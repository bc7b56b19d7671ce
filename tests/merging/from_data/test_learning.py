"""Learning from the single models: distances and gradients beside dense weights, and what learning does to them."""

import dataclasses

import pytest
import torch
from torch.func import functional_call
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.from_data import learning, matching
from osrm_cli.merging.from_data.gather import gather_layer_data
from osrm_cli.merging.merge import merge_adapters
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.mixed_texts import mix_texts
from osrm_cli.models.output_hooks import low_rank_output_hook
from osrm_cli.progress import no_progress
from tests import trained_adapters

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")


def opened(made, method="distill", tasks=TASKS, **options):
    root, base = made
    return trained_adapters.models(
        method, [root / task for task in tasks], base, **{"samples": 12, "steps": 20, **options}
    )


def sum_of(models, plan):
    """The sum of the updates, as factors."""
    parts = [{layer: model.delta(layer) for layer in plan.layers} for model in models]
    return {
        layer: LowRank(torch.cat([p[layer].B for p in parts], 1), torch.cat([p[layer].A for p in parts]))
        for layer in plan.layers
    }


def dense_distance(root, base, model, layers, scales, weights, rows):
    """The same distance from models whose dense weights are the merged and the single one, one text at a time."""
    single = trained_adapters.dense(root / model.name, base, model.name)  # for its head and its outputs
    ours, kinds = trained_adapters.bare(base, model.name), (True, False)
    ours.load_state_dict({name: x for name, x in single.state_dict().items() if name not in weights}, strict=False)
    _, head = matching.find_head_layer(ours)
    heads = {id(ours): head, id(single): matching.find_head_layer(single)[1]}
    seen = {True: [], False: []}
    for index in rows:
        for own, shell in zip(kinds, (ours, single), strict=True):
            states, pooled = {}, []
            handles = [
                shell.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, name=name, states=states: states.update({name: args[0][0]})
                )
                for name in layers
            ]
            handles.append(
                heads[id(shell)].register_forward_pre_hook(lambda _, args, pooled=pooled: pooled.append(args[0]))
            )
            batch = model.batch([index])
            logits = (functional_call(shell, weights, (), batch) if own else shell(**batch)).logits
            state = pooled[0][:, -1] if pooled[0].dim() == 3 else pooled[0]
            seen[own].append(([states[name] for name in layers], state, logits))
            for handle in handles:
                handle.remove()
    found, wanted = ([*zip(*seen[own], strict=True)] for own in kinds)
    parts = []
    for place, scale in enumerate(scales[:-2]):
        a, b = (torch.cat([states[place] for states in side[0]]) for side in (found, wanted))
        parts.append((a - b).square().mean() / scale)
    total = sum(parts) / len(parts) + (torch.cat(found[1]) - torch.cat(wanted[1])).square().mean() / scales[-2]
    a, b = torch.cat(found[2]), torch.cat(wanted[2])
    if model.name == "score":
        return total + (a - b).square().mean() / scales[-1]
    p = b.softmax(-1)
    return total + (p * (p.log() - a.log_softmax(-1))).sum(-1).mean() / scales[-1]


def test_the_distance_and_its_gradient_are_those_of_dense_weights(made):
    root, base = made
    plan, models = opened(made)
    start = sum_of(models, plan)
    for index, model in enumerate(models):
        targets = matching.compute_matching_targets(model, index, plan)
        pairs = {name: LowRank(x.B.clone().requires_grad_(), x.A) for name, x in start.items()}
        rows, wanted = targets.training[0]
        found = matching.run_task_model(
            model, {name: low_rank_output_hook(x) for name, x in pairs.items()}, targets.layers, rows
        )
        ours = matching.matching_distance(targets, found, wanted)
        copies = {name: x.B.detach().clone().requires_grad_() for name, x in pairs.items()}
        weights = {}
        for name in plan.layers:
            module = trained_adapters.bare(base, model.name).get_submodule(name)
            delta = copies[name] @ start[name].A
            weights[f"{name}.weight"] = module.weight.detach() + (delta.T if isinstance(module, Conv1D) else delta)
        theirs = dense_distance(root, base, model, targets.layers, targets.scales, weights, rows)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        grads = torch.autograd.grad(ours, [x.B for x in pairs.values()], allow_unused=True)
        expected = torch.autograd.grad(theirs, list(copies.values()), allow_unused=True)
        assert max(float(x.abs().max()) for x in expected if x is not None) > 1e-6
        for grad, x in zip(grads, expected, strict=True):
            if x is not None and x.norm() > 1e-6:
                assert (grad - x).norm() / x.norm() < 1e-2


def test_the_single_model_has_no_distance(made):
    plan, models = opened(made, mixed_texts=0)
    for index, model in enumerate(models):
        targets = matching.compute_matching_targets(model, index, plan)
        hooks = {name: low_rank_output_hook(model.delta(name)) for name in plan.layers}
        assert matching.mean_matching_distance(targets, hooks) < 1e-6
        texts = [text for part in (targets.training, targets.held_out) for rows, _ in part for text in rows]
        assert sorted(texts) == list(range(12))
        assert 1 <= len(targets.layers) <= matching.STATES


def test_a_constant_has_distance_one_in_each_part(made):
    plan, models = opened(made, mixed_texts=0)
    for index, model in enumerate(models):
        targets = matching.compute_matching_targets(model, index, plan)
        wanted = [outputs for _, outputs in targets.training]
        z, logits = (torch.cat([getattr(each, name) for each in wanted]) for name in ("pooled", "logits"))
        best = logits.mean(0) if model.name == "score" else logits.softmax(-1).mean(0).log()
        total, count = 0.0, 0
        for each in wanted:
            rows = len(each.logits)
            constant = dataclasses.replace(each, pooled=z.mean(0).expand_as(each.pooled), logits=best.expand(rows, -1))
            total, count = total + float(matching.matching_distance(targets, constant, each)) * rows, count + rows
        assert total / count == pytest.approx(2, rel=1e-4) or targets.scales[-1] == matching.LEAST_INFORMATION


def test_mixed_texts_are_learned_from_and_nothing_else(made):
    plan, models = opened(made, samples=20, mixed_texts=2)
    plain, _ = opened(made, samples=20, mixed_texts=0)
    for index, model in enumerate(models):
        targets, without = (matching.compute_matching_targets(model, index, each) for each in (plan, plain))
        assert (targets.mixed, without.mixed) == (36, 0)
        assert targets.scales == without.scales
        count = len(without.training)
        for ours, theirs in ((targets.training[:count], without.training), (targets.held_out, without.held_out)):
            assert [rows for rows, _ in ours] == [rows for rows, _ in theirs]
            assert all(torch.equal(a.pooled, b.pooled) for (_, a), (_, b) in zip(ours, theirs, strict=True))
        assert sorted(row for rows, _ in targets.training[count:] for row in rows) == list(range(20, 56))
        training = [example for place, example in enumerate(model.sample.data.examples) if place % 8 < 7]
        mixed = mix_texts(training, 2, 0, model.name)
        tokens = model.backbone.tokenize(mixed, model.sample.max_length)
        for found, expected in zip(targets.model.encodings[20:], tokens, strict=True):
            assert found["input_ids"].tolist() == expected["input_ids"].tolist()
        for rows, wanted in targets.training[count:]:
            hooks = {name: low_rank_output_hook(model.delta(name)) for name in plan.layers}
            again = matching.run_task_model(targets.model, hooks, targets.layers, rows)
            torch.testing.assert_close(again.logits, wanted.logits, rtol=1e-4, atol=1e-5)


def test_without_mixed_texts_none_are_made(made, monkeypatch):
    """What is learned is what a plan without the option learns."""
    plan, models = opened(made, steps=4, lr=1e-2, mixed_texts=0)
    options = {name: value for name, value in plan.recipe.options.items() if name != "mixed_texts"}
    unaware = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, options=options))
    more, _ = opened(made, steps=4, lr=1e-2, mixed_texts=1)
    start = sum_of(models, plan)
    monkeypatch.setattr(matching, "HELD_OUT", 99)  # so that something is learned
    learned = [learning.learn_factors(models, each, start, lambda _: None) for each in (plan, unaware, more)]
    assert learned[0].record == learned[1].record
    assert learned[0].record["steps"] > 0
    assert learned[2].record["mixed_texts"] == dict.fromkeys(TASKS, 12)
    factors = [
        torch.cat([x.flatten() for layer in plan.layers for x in each.for_layer(layer, {})["factors"]])
        for each in learned
    ]
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


def test_outputs_that_are_not_kept_are_asked_for_again(made, monkeypatch):
    """To the same factors: what is kept on mixed texts is bounded, what is learned from them is not."""
    plan, models = opened(made, steps=4, lr=1e-2, mixed_texts=2)
    start, learned = sum_of(models, plan), []
    monkeypatch.setattr(matching, "HELD_OUT", 99)
    for most in (1 << 29, 0):
        monkeypatch.setattr(matching, "MOST_KEPT", most)
        targets = matching.compute_matching_targets(models[0], 0, plan)
        assert isinstance(targets.training, matching.PartlyKeptBatches) == (most == 0)
        learned.append(learning.learn_factors(models, plan, start, lambda _: None))
    assert learned[0].record == learned[1].record
    for layer in plan.layers:
        ours, theirs = (each.for_layer(layer, {})["factors"] for each in learned)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def total(record, when):
    return sum(row[when] for row in record["distance"].values())


@pytest.mark.parametrize("start", ["task-arith", "tsv", "sequential"])
def test_distilled_factors_come_nearer_at_their_rank(made, tmp_path, start, monkeypatch):
    monkeypatch.setattr(matching, "HELD_OUT", 99)  # too few texts to hold one out: those that are learned from serve
    plan, models = opened(made, samples=20, steps=60, start=start, rank=4, lr=1e-2)  # they are large
    done, layer_data = gather_layer_data(plan, models, tmp_path, no_progress)
    record = layer_data.record
    assert total(record, "after") < total(record, "before")
    assert 0 < record["steps"] <= 60
    results = {layer.name: layer for layer in merge_layers(done, layer_data, done.layers)}
    assert {layer.result.rank for layer in results.values()} == {4}
    hooks = {name: low_rank_output_hook(layer.result) for name, layer in results.items()}
    for index, model in enumerate(models):
        after = matching.mean_matching_distance(matching.compute_matching_targets(model, index, plan), hooks)
        assert after == pytest.approx(record["distance"][model.name]["after"], rel=1e-4, abs=1e-6)


def test_further_layers_change_nothing_at_first(made):
    plan, models = opened(made, target_modules=["all-linear"], steps=1)
    wide = plan.with_target_modules(models[0].backbone.folder)
    assert set(plan.layers) < set(wide.layers)
    start = sum_of(models, plan)
    for layer in wide.layers:
        delta = learning.widen_merged_factors(wide, layer, start.get(layer), 9)
        assert delta.rank == min(9, *delta.shape)
        if layer not in start:
            torch.testing.assert_close(delta.A @ delta.A.T, torch.eye(delta.rank))
    records = [learning.learn_factors(models, each, start, lambda _: None).record for each in (plan, wide)]
    assert total(records[0], "before") == pytest.approx(total(records[1], "before"), rel=1e-6)


def test_further_layers_are_written_as_peft_and_transformers_read_them(made, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "HELD_OUT", 99)  # so that something is gained
    root, base = made
    options = {"samples": 12, "steps": 12, "rank": 4, "target_modules": ["all-linear"]}
    for form in ("adapter", "model"):
        merge_adapters([root / task for task in TASKS], "distill", options=options, form=form, out=tmp_path / form)
    own, merged = open_adapter(root / "mood"), open_adapter(tmp_path / "adapter" / "tasks" / "mood")
    further = merged.layers.keys() - own.layers.keys()
    assert set(merged.config.target_modules) == set(merged.layers)
    assert {layer.rank for layer in merged.layers.values()} == {4}
    assert any(merged.delta(name).dense().abs().max() > 1e-5 for name in further)
    by_peft = trained_adapters.dense(merged.folder, base, "mood").state_dict()
    whole = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    for name in merged.layers:
        weight = next(x for key, x in whole.items() if f"{name}.weight".endswith(key))
        torch.testing.assert_close(weight, by_peft[f"{name}.weight"], rtol=1e-4, atol=1e-5)


def test_a_perfect_start_is_kept(made, tmp_path):
    plan, models = opened(made, tasks=("mood",), start="task-arith", steps=5)
    _, layer_data = gather_layer_data(plan, models, tmp_path, no_progress)
    for layer in merge_layers(plan, layer_data, plan.layers):
        torch.testing.assert_close(layer.result.dense(), models[0].delta(layer.name).dense(), rtol=1e-4, atol=1e-5)


def test_nothing_changes_when_nothing_is_gained(made):
    plan, models = opened(made, lr=1e-30)
    start, advanced = sum_of(models, plan), []
    learned = learning.learn_factors(models, plan, start, advanced.append)
    assert sum(advanced) == 20
    assert learned.record["steps"] == 0
    for layer in plan.layers:
        for ours, theirs in zip(learned.for_layer(layer, {})["factors"], (start[layer].B, start[layer].A), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_matched_weights_come_nearer_and_replace_lambda(made, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "HELD_OUT", 99)  # too few texts to hold one out: those that are learned from serve
    plan, models = opened(made, "matched-weights", steps=40, **{"lambda": 0.3})
    done, layer_data = gather_layer_data(plan, models, tmp_path, no_progress)
    record = layer_data.record
    assert total(record, "after") < total(record, "before")
    weights = [done.weight(index, layer) for index in range(len(TASKS)) for layer in done.layers]
    assert len(set(weights)) > 1
    assert done.options.scale == 1.0
    hooks = {layer.name: low_rank_output_hook(layer.result) for layer in merge_layers(done, layer_data, done.layers)}
    after = sum(
        matching.mean_matching_distance(matching.compute_matching_targets(m, i, plan), hooks)
        for i, m in enumerate(models)
    )
    assert after == pytest.approx(total(record, "after"), rel=1e-4)


@pytest.mark.parametrize("method", ["distill", "matched-weights"])
def test_no_label_is_read(made, tmp_path, method):
    """Other labels, the same result."""
    plan, models = opened(made, method, steps=3)
    blind = []
    for model in models:
        data = model.sample.data
        unlabelled = tuple(dataclasses.replace(example, label=None) for example in data.examples)
        sample = dataclasses.replace(model.sample, data=dataclasses.replace(data, examples=unlabelled))
        blind.append(dataclasses.replace(model, sample=sample))
    results = []
    for each in (models, blind):
        done, layer_data = gather_layer_data(plan, each, tmp_path, no_progress)
        results.append([layer.result.dense() for layer in merge_layers(done, layer_data, done.layers)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
