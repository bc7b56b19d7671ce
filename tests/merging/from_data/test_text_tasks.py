"""Methods that need data, on tasks that are answered with text: beside plain transformers, one example at a time."""

import dataclasses
import json
import math
import warnings

import pytest
import torch
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.reduced_rank import reduce_rank
from osrm_cli.merging.from_data import fisher, matching
from osrm_cli.merging.from_data.gather import gather_layer_data, load_task_models
from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.sequential import SequentialTargets
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.models.output_hooks import low_rank_output_hook
from osrm_cli.progress import no_progress
from tests import text_adapters, trained_adapters

torch.set_num_threads(1)
TASKS = ("backwards", "same")


@pytest.fixture(scope="module", params=["llama", "gpt2", "t5"])
def made(request, tiny_writer, completion_tasks, tmp_path_factory):
    root, base = tmp_path_factory.mktemp(f"text-{request.param}"), tiny_writer(request.param)
    for task in TASKS:
        text_adapters.save(root / task, base, completion_tasks)
    return root, base


def opened(made, method, tasks=TASKS, **options):
    root, base = made
    return trained_adapters.models(method, [root / task for task in tasks], base, **{"samples": 8, **options})


def inputs_of_example(model, encoding):
    """What plain transformers reads of one example, and the positions that predict its completion."""
    ids, labels = (torch.tensor([encoding[name].tolist()]) for name in ("input_ids", "labels"))
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.config.decoder_start_token_id]])
        decoded = torch.cat([start, labels[:, :-1]], 1)
        return {"input_ids": ids, "decoder_input_ids": decoded}, list(range(labels.shape[1]))
    first = int((labels[0] != -100).nonzero()[0])
    return {"input_ids": ids}, list(range(first - 1, ids.shape[1] - 1))


def observe(model, encoding, layers):
    """Logits at the completion's positions, the output layer's inputs there, and inputs of layers at all positions."""
    inputs, positions = inputs_of_example(model, encoding)
    seen = {}
    output = model.get_output_embeddings()
    modules = {**{name: model.get_submodule(name) for name in layers}, "output": output}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0][0]}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    for handle in handles:
        handle.remove()
    return logits[positions], seen.pop("output")[positions], seen, positions


def divergence(found, wanted):
    p = wanted.double().softmax(-1)
    return (p * (p.log() - found.double().log_softmax(-1))).sum(-1)


def with_updates(base, updates):
    """The base model with dense updates added to its weights."""
    model = text_adapters.bare(base)
    for name, update in updates.items():
        module = model.get_submodule(name)
        module.weight.data += (update.T if isinstance(module, Conv1D) else update).float()
    return model


def sum_of(models, plan):
    parts = [{layer: model.delta(layer) for layer in plan.layers} for model in models]
    return {
        layer: LowRank(torch.cat([p[layer].B for p in parts], 1), torch.cat([p[layer].A for p in parts]))
        for layer in plan.layers
    }


def test_the_single_adapter_writes_the_completions(made):
    """Token for token what ``generate`` writes of each prompt alone, with PEFT's merged weights."""
    root, base = made
    _, models = opened(made, "distill")
    tokenizer = AutoTokenizer.from_pretrained(base)
    for model in models:
        single = text_adapters.dense(root / model.name, base)
        lengths = set()
        for example, encoding in zip(model.sample.data.text_examples, model.encodings, strict=True):
            assert example.completion == ""  # which was not read
            prompt = torch.tensor([tokenizer(example.prompt)["input_ids"]])
            written = single.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0,
                eos_token_id=2, max_length=None,
            )[0].tolist()  # fmt: skip
            labels = [label for label in encoding["labels"].tolist() if label != -100]
            encoder_decoder = single.config.is_encoder_decoder
            assert labels == (written[1:] if encoder_decoder else written[prompt.shape[1] :])
            assert encoding["input_ids"].tolist() == (prompt[0].tolist() if encoder_decoder else written)
            lengths.add(len(labels))
        assert max(lengths) <= 64


def test_given_completions_are_read_where_they_are_wanted(made, completion_tasks):
    _, models = opened(made, "distill", completions="given")
    tokenizer = models[0].backbone.tokenizer
    for model in models:
        for example, encoding in zip(model.sample.data.text_examples, model.encodings, strict=True):
            labels = [label for label in encoding["labels"].tolist() if label != -100]
            assert tokenizer.decode(labels, skip_special_tokens=True) == example.completion != ""
            assert labels[-1] == tokenizer.eos_token_id


def test_the_distance_is_that_of_dense_weights(made):
    root, base = made
    plan, models = opened(made, "distill")
    start = sum_of(models, plan)
    ours = with_updates(base, {name: delta.dense() for name, delta in start.items()})
    hooks = {name: low_rank_output_hook(delta) for name, delta in start.items()}
    for index, model in enumerate(models):
        single = text_adapters.dense(root / model.name, base)
        targets = matching.compute_matching_targets(model, index, plan)
        assert targets.mixed == 0
        rows, wanted = targets.training[0]
        assert wanted.logits is None
        found = matching.run_task_model(model, hooks, targets.layers, rows)
        parts = {name: [] for name in (*targets.layers, "pooled", "output")}
        for row in rows:
            logits, pooled, states, positions = observe(ours, model.encodings[row], targets.layers)
            own_logits, own_pooled, own_states, _ = observe(single, model.encodings[row], targets.layers)
            for name, of_encoder in targets.layers.items():
                places = slice(None) if of_encoder else positions
                parts[name].append((states[name][places] - own_states[name][places]).square().flatten())
            parts["pooled"].append((pooled - own_pooled).square().flatten())
            parts["output"].append(divergence(logits, own_logits))
        means = {name: float(torch.cat(values).mean()) for name, values in parts.items()}
        *scales, pooled_scale, output_scale = targets.scales
        expected = sum(means[name] / scale for name, scale in zip(targets.layers, scales, strict=True)) / len(scales)
        expected += means["pooled"] / pooled_scale + means["output"] / output_scale
        assert means["output"] > 1e-4
        assert float(matching.matching_distance(targets, found, wanted)) == pytest.approx(expected, rel=1e-3)
        of_encoder = {name for name in targets.layers if name.startswith("encoder")}
        assert of_encoder <= {name for name, reads_prompt in targets.layers.items() if reads_prompt}


def test_the_unit_of_the_divergence_is_the_base_models(made):
    root, base = made
    plan, models = opened(made, "distill")
    plain = text_adapters.bare(base)
    for index, model in enumerate(models):
        targets = matching.compute_matching_targets(model, index, plan)
        single = text_adapters.dense(root / model.name, base)
        rows = [row for batch, _ in targets.training for row in batch]
        pairs = [[observe(each, model.encodings[row], [])[0] for each in (plain, single)] for row in rows]
        expected = float(torch.cat([divergence(*pair) for pair in pairs]).mean())
        assert targets.scales[-1] == pytest.approx(max(expected, matching.LEAST_INFORMATION), rel=1e-3)


def test_the_single_model_has_no_distance(made):
    plan, models = opened(made, "distill")
    for index, model in enumerate(models):
        targets = matching.compute_matching_targets(model, index, plan)
        hooks = {name: low_rank_output_hook(model.delta(name)) for name in plan.layers}
        assert matching.mean_matching_distance(targets, hooks) < 1e-5


def mean_divergence(root, base, updates, data):
    """Of a merged model from the single ones, over all tasks, on the prompts of the dev split."""
    merged, tokenizer, found = with_updates(base, updates), AutoTokenizer.from_pretrained(base), []
    for task in TASKS:
        single = text_adapters.dense(root / task, base)
        for line in (data / task / "dev.jsonl").read_text().splitlines():
            ids = torch.tensor([tokenizer(json.loads(line)["prompt"])["input_ids"]])
            settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
            written = single.generate(ids, attention_mask=torch.ones_like(ids), max_length=None, **settings)[0].numpy()
            if single.config.is_encoder_decoder:
                encoding = {"input_ids": ids[0].numpy(), "labels": written[1:]}
            else:
                masked = torch.tensor([-100] * ids.shape[1] + written[ids.shape[1] :].tolist()).numpy()
                encoding = {"input_ids": written, "labels": masked}
            found.append(divergence(*(observe(model, encoding, [])[0] for model in (merged, single))))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("method", ["distill", "matched-weights"])
def test_predictions_on_other_prompts_come_nearer(made, completion_tasks, tmp_path, method):
    """Beside where learning began, on prompts that it has not seen."""
    root, base = made
    begins = {"start": "task-arith"} if method == "distill" else {"lambda": 1.0}
    plan, models = opened(made, method, samples=32, steps=60, lr=1e-2, **begins)
    done, layer_data = gather_layer_data(plan, models, tmp_path, no_progress)
    updates = {layer.name: layer.result.dense() for layer in merge_layers(done, layer_data, done.layers)}
    # A few weights can do little about the random T5's many layers: there, only what they learned from comes nearer.
    if method == "distill" or not models[0].backbone.model.config.is_encoder_decoder:
        before = mean_divergence(root, base, {n: d.dense() for n, d in sum_of(models, plan).items()}, completion_tasks)
        assert mean_divergence(root, base, updates, completion_tasks) < 0.95 * before
    record = layer_data.record
    assert sum(row["after"] for row in record["distance"].values()) < sum(
        row["before"] for row in record["distance"].values()
    )
    assert record["steps"] > 0
    again, layer_data = gather_layer_data(plan, models, tmp_path, no_progress)
    same = {layer.name: layer.result.dense() for layer in merge_layers(again, layer_data, again.layers)}
    assert all(torch.equal(same[name], update) for name, update in updates.items())


def tokens_seen(model, task_model, layer):
    """A layer's inputs at every token of prompt and completion, example by example, ``(tokens, d_in)``."""
    rows = []
    for index in [index for batch in task_model.batches() for index in batch]:
        rows.append(observe(model, task_model.encodings[index], [layer])[2][layer])
    return torch.cat(rows).double()


def oriented(module):
    weight = module.weight.detach().double()
    return weight.T if isinstance(module, Conv1D) else weight


def test_sequential_is_the_regression_on_the_single_models_outputs(made):
    """Solved again from the tokens in float64, with the layers below it merged: no moments, no hooks, no padding."""
    root, base = made
    plan, models = opened(made, "sequential", ridge=0.1)
    layer_data = SequentialTargets(models, plan)
    results = {layer.name: layer.result for layer in merge_layers(plan, layer_data, plan.layers)}
    order = layer_data.sequence
    for place in (0, 1, len(order) // 2, len(order) - 1):
        layer = order[place]
        merged = with_updates(base, {name: results[name].dense() for name in order[:place]})
        left, right, C = 0, 0, 0
        for task, model in zip(TASKS, models, strict=True):
            x, whole = tokens_seen(merged, model, layer), text_adapters.dense(root / task, base)
            single, before = oriented(whole.get_submodule(layer)), oriented(merged.get_submodule(layer))
            y = tokens_seen(whole, model, layer) @ single.T - x @ before.T
            C, right, left = C + x.T @ x / len(x), right + y.T @ x / len(x), left + single - before
        rho = 0.1 * C.diagonal().mean()
        expected = (right + rho / 2 * left) @ torch.linalg.inv(C + rho * torch.eye(len(C)))
        expected = reduce_rank(expected, C, results[layer].rank)[0].dense()
        assert (results[layer].dense() - expected).norm() / expected.norm() < 1e-3, layer


def test_regmean_plus_plus_sees_the_merged_model(made):
    _, base = made
    plan, models = opened(made, "regmean++")
    seen = {}

    class Seen(SequentialMoments):
        def for_layer(self, layer, merged):
            fields = super().for_layer(layer, merged)
            seen[layer] = fields["second_moments"]
            return fields

    layer_data = Seen(models, plan)
    results = {layer.name: layer.result.dense() for layer in merge_layers(plan, layer_data, plan.layers)}
    merged = with_updates(base, results)
    for index, model in enumerate(models):
        for layer in plan.layers:
            x = tokens_seen(merged, model, layer)
            expected = x.T @ x / len(x)
            assert (seen[layer][index] - expected).norm() / expected.norm() < 1e-4, layer


def test_fisher_is_that_of_the_completions_likelihood(made):
    """Autograd on dense weights, by transformers' own loss."""
    root, base = made
    plan, models = opened(made, "fisher", samples=5)
    shapes = {name: (layer.d_out, layer.d_in) for name, layer in plan.shapes.items()}
    for model in models:
        assert all(example.completion for example in model.sample.data.text_examples)
        found = fisher.fisher_diagonal(model, shapes, lambda _: None)
        single = text_adapters.dense(root / model.name, base)
        weights = {name: single.get_submodule(name).weight.requires_grad_() for name in plan.layers}
        total = dict.fromkeys(plan.layers, 0)
        for encoding in model.encodings:
            labels = torch.tensor([encoding["labels"].tolist()])
            loss = single(input_ids=torch.tensor([encoding["input_ids"].tolist()]), labels=labels).loss
            grads = torch.autograd.grad(loss * int((labels != -100).sum()), list(weights.values()))
            for name, grad in zip(weights, grads, strict=True):
                turned = grad.T if isinstance(single.get_submodule(name), Conv1D) else grad
                total[name] = total[name] + turned.double().square() / len(model.encodings)
        for name in plan.layers:
            assert (found[name].double() - total[name]).norm() / total[name].norm() < 1e-3, name


def test_soft_capped_logits(tiny_writer, completion_tasks, tmp_path):
    base = tiny_writer("gemma2")
    text_adapters.save(tmp_path / "same", base, completion_tasks)
    plan, models = opened((tmp_path, base), "distill", ("same",), samples=4)
    shell = models[0].with_head_loaded()
    shell.config.final_logit_softcapping = 0.05  # so that it matters
    targets = matching.compute_matching_targets(models[0], 0, plan)
    single = text_adapters.dense(tmp_path / "same", base)
    single.config.final_logit_softcapping = 0.05
    rows, wanted = targets.training[0]
    expected = torch.cat([observe(single, models[0].encodings[row], [])[0] for row in rows])
    assert expected.abs().max() > 0.02
    torch.testing.assert_close(matching.read_matched_logits(models[0], wanted), expected, rtol=1e-3, atol=1e-4)


def test_an_adapted_output_layer_is_refused(tiny_writer, completion_tasks, tmp_path):
    base = tiny_writer("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on output layers
        text_adapters.save(tmp_path / "same", base, completion_tasks, target_modules=["q_proj", "lm_head"])
    plan, models = opened((tmp_path, base), "distill", ("same",), samples=4)
    with pytest.raises(OsrmError, match="the adapter changes that layer"):
        matching.compute_matching_targets(models[0], 0, plan)


def test_classifiers_and_writers_of_one_base_learn_together(tiny_writer, completion_tasks, text_tasks, tmp_path):
    base = tiny_writer("llama")
    text_adapters.save(tmp_path / "same", base, completion_tasks)
    trained_adapters.save(tmp_path / "mood", base, "llama", text_tasks)
    for method in ("distill", "matched-weights", "sequential", "lot", "regmean++", "fisher", "frank-wolfe"):
        options = {"steps": 20} if method in ("distill", "matched-weights", "frank-wolfe") else {}
        plan, models = opened((tmp_path, base), method, ("mood", "same"), **options)
        assert [model.is_text for model in models] == [False, True]
        (tmp_path / method).mkdir()
        done, layer_data = gather_layer_data(plan, models, tmp_path / method, no_progress)
        for layer in merge_layers(done, layer_data, done.layers):
            assert torch.isfinite(layer.result.dense()).all()
        for row in layer_data.record.get("distance", {}).values():
            assert math.isfinite(row["after"])


def test_classifiers_and_writers_on_one_encoder_decoder_are_refused(
    tiny_writer, completion_tasks, text_tasks, tmp_path
):
    base = tiny_writer("t5")
    text_adapters.save(tmp_path / "same", base, completion_tasks)
    trained_adapters.save(tmp_path / "mood", base, "t5", text_tasks)
    with pytest.raises(OsrmError, match="cannot read classifiers and writers on one encoder-decoder"):
        opened((tmp_path, base), "sequential", ("mood", "same"))


def test_an_adapter_of_the_other_kind_is_refused(tiny_writer, completion_tasks, tmp_path):
    base = tiny_writer("llama")
    text_adapters.save(tmp_path / "same", base, completion_tasks, task_type="SEQ_CLS")
    with pytest.raises(OsrmError, match="task_type is SEQ_CLS, expected CAUSAL_LM or SEQ_2_SEQ_LM"):
        opened((tmp_path, base), "distill", ("same",))
    text_adapters.save(tmp_path / "last", base, completion_tasks)
    with pytest.raises(OsrmError, match="'last' is answered with text"):
        opened((tmp_path, base), "adamerging", ("last",))


def test_too_long_completions_are_left_out(made):
    plan, models = opened(made, "fisher", samples=20)
    _, base = made
    short = [dataclasses.replace(model.sample, max_length=5) for model in models]
    cut = load_task_models(plan, short, plan.read_saved_modules(), base, torch.device("cpu"), no_progress)
    for model, whole in zip(cut, models, strict=True):
        assert 0 < len(model.encodings) < len(whole.encodings)
        assert "left out" in model.warnings[0]
