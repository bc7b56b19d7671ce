"""Gradients of the loss beside PyTorch's own, over every family of models."""

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.loss_gradients import _halve_gradient_sample, compute_loss_gradients
from osrm_cli.models import linear_head
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.target_modules import default_target_modules, find_target_layers, is_conv1d, layer_widths
from osrm_cli.models.token_batches import collate_batch, tokenize_for_classifier
from osrm_cli.tasks.loading import draw_examples, load_split
from osrm_cli.tasks.task import Example, Task, TaskSplit

CPU = torch.device("cpu")


def made(folder, data, task_name, k=12, names=None):
    tokenizer = load_tokenizer(folder)
    drawn = draw_examples(load_split(task_name, data, "train"), k, 0)
    classifier = load_classifier(folder, drawn.task.num_labels, tokenizer, torch.float32, 0)
    layers = find_target_layers(classifier, names or default_target_modules(classifier.model))
    return classifier.model, layers, drawn, tokenize_for_classifier(tokenizer, drawn.examples, 32), tokenizer


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "llama", "gpt2"])
@pytest.mark.parametrize("task", ["mood", "pair", "score"])
def test_equals_the_slow_way(tiny_model, text_tasks, family, task):
    """One example at a time through transformers' own loss, at the head fitted on the other half."""
    model, layers, data, encodings, tokenizer = made(tiny_model(family), text_tasks, task, k=16)
    counted = []
    found = compute_loss_gradients(model, layers, data, encodings, tokenizer, 5, counted.append)
    assert sum(counted) == len(encodings)
    _, head = linear_head.find_head_layer(model)
    Z = linear_head.compute_representations(model, encodings, tokenizer, CPU, 16, lambda _: None).double()
    model.requires_grad_(True)
    model.config.problem_type = "regression" if data.task.regression else "single_label_classification"
    expected = dict.fromkeys(layers, 0)
    for fitted, judged in (_halve_gradient_sample(data), _halve_gradient_sample(data)[::-1]):
        linear_head.fit_linear_head(head, data.task, Z[fitted], [data.labels[i] for i in fitted])
        for i in judged:
            model.zero_grad()
            batch = collate_batch([encodings[i]], tokenizer, CPU)
            label = torch.tensor([data.labels[i]], dtype=torch.float32 if data.task.regression else torch.int64)
            model(**batch, labels=label).loss.backward()
            for name, layer in layers.items():
                gradient = layer.weight.grad
                expected[name] = expected[name] + (gradient.T if is_conv1d(layer) else gradient)
    for name, gradient in found.items():
        d_in, d_out = layer_widths(layers[name])
        assert gradient.shape == (d_out, d_in)
        reference = expected[name] / len(encodings)
        assert (gradient - reference).norm() <= 2e-4 * reference.norm()


def test_halves_share_out_every_class():
    labels = [0, 1, 1, 0, 0, 1, 0, 0]
    data = TaskSplit(
        Task("t", ("text",), ("a", "b"), ("accuracy",)), "train", tuple(Example(("x",), y) for y in labels), "here"
    )
    first, second = _halve_gradient_sample(data)
    assert sorted(first + second) == list(range(8))
    assert abs(len(first) - len(second)) <= 1
    for half in (first, second):
        assert {labels[i] for i in half} == {0, 1}


def test_a_class_that_is_too_rare_is_named(tiny_model, text_tasks):
    data = TaskSplit(
        Task("t", ("text",), ("a", "b"), ("accuracy",)),
        "train",
        tuple(Example(("w1",), int(i == 0)) for i in range(5)),
        "here",
    )
    with pytest.raises(OsrmError, match="5 examples of 't' hold 1 of class 'b'") as caught:
        _halve_gradient_sample(data)
    assert caught.value.hint == "take more --samples"
