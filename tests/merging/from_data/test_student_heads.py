"""Heads that are fitted to what a teacher says."""

import pytest
import torch
from torch.nn import functional

from osrm_cli.merging.from_data.matching import prediction_divergence
from osrm_cli.merging.from_data.student_heads import STRENGTHS, fit_student_head, make_student_head
from osrm_cli.models.backbone import Backbone
from osrm_cli.models.linear_head import find_head_layer


@pytest.fixture
def backbone(tiny_model, request):
    return Backbone.load(tiny_model(request.param), torch.device("cpu"))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backbone", ["bert", "llama"], indirect=True)  # with and without a bias
@pytest.mark.parametrize("labels", [1, 3])
def test_a_linear_teacher_is_found_again(backbone, labels):
    head = make_student_head(backbone, labels, 0, "task")
    _, layer = find_head_layer(head.classifier)
    x, teacher = drawn(400, layer.in_features) * 3 + 1, drawn(labels, layer.in_features)
    wanted = x @ teacher.T / 4 + (2 if layer.bias is not None else 0)
    assert fit_student_head(head, x[:300], wanted[:300], labels == 1) == STRENGTHS[0]
    found = layer(x[300:])
    if labels == 1:
        assert functional.mse_loss(found, wanted[300:]) < 1e-2 * wanted[300:].var()
    else:
        constant = wanted[:300].softmax(-1).mean(0).log().expand(100, -1)
        assert prediction_divergence(found, wanted[300:]) < 2e-2 * prediction_divergence(constant, wanted[300:])


@pytest.mark.parametrize("backbone", ["bert"], indirect=True)
def test_a_sure_teacher_whose_reasons_are_not_seen_gives_an_unsure_head(backbone):
    """A regression on its logits would be sure of what it does not know."""
    head = make_student_head(backbone, 2, 0, "task")
    _, layer = find_head_layer(head.classifier)
    x, signs = drawn(64, layer.in_features), drawn(64, 1, seed=1).sign()
    wanted = torch.cat([-8 * signs, 8 * signs], 1)
    assert fit_student_head(head, x, wanted, False) > STRENGTHS[0]
    fresh = drawn(200, layer.in_features, seed=2)
    assert layer(fresh).softmax(-1).max(-1).values.mean() < 0.8


@pytest.mark.parametrize("backbone", ["mpnet"], indirect=True)
def test_a_head_of_several_layers_is_drawn_by_seed_and_task(backbone):
    first, again, other = (make_student_head(backbone, 2, 0, task) for task in ("a", "a", "b"))
    names = {name.partition(".")[0] for name in first.read()}
    assert names == {"classifier"}
    assert len(first.read()) == 4
    for name, tensor in first.read().items():
        assert tensor.equal(again.read()[name])
        if tensor.ndim > 1:
            assert not tensor.equal(other.read()[name])
        else:
            assert not tensor.any()
    trained = {id(parameter) for parameter in first.parameters}
    assert trained == {id(parameter) for parameter in first.classifier.classifier.parameters()}
