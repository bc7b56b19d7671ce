"""Features of several tasks, layer by layer: what each task's own inputs are, and what the other tasks' are."""

from pathlib import Path

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet, FeatureSetLayer
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.seeding import gaussian
from osrm_cli.storage import safetensors_writer

TASKS = ("a", "b", "c")
LAYERS = {
    "query": {"source": "query", "d_in": 12, "d_out": 4},
    "value": {"source": "query", "d_in": 12, "d_out": 4},
    "wo": {"source": "wo", "d_in": 5, "d_out": 4},
}
BASE = {"name": "tiny", "revision": None, "sha256": "a" * 64}


def tokens(task: str, layer: str = "query", n: int = 30) -> torch.Tensor:
    width = LAYERS[layer]["d_in"]
    assert isinstance(width, int)
    return gaussian(n, width, 0, task, layer) + gaussian(1, width, 0, "mean", task, layer)


def write(folder: Path, task: str, *statistics: str) -> None:
    """Features as ``osrm collect`` writes them, in float64."""
    tensors = {}
    for layer in ("query", "wo"):
        X = tokens(task, layer)
        made = {"second-moment": X.T @ X / len(X), "sketch:30": X, "mean": X.mean(0), "gradient": X[:4].clone()}
        tensors |= {f"{layer}.{name}": made[name] for name in statistics}
    if "gradient" in statistics:
        tensors["value.gradient"] = tokens(task)[4:8]
    described = {"name": task, "columns": ["text"], "labels": ["no", "yes"], "metrics": ["accuracy"]}
    facts = {"command": "collect", "task": described, "base": BASE, "layers": LAYERS, "tokens": 30, "examples": 3}
    facts |= {"statistics": statistics, "target_modules": ["query", "value", "wo"], "fan_in_fan_out": False}
    facts |= {"settings": {"pooling": "masked"}}
    if "sketch:30" in statistics:
        facts["bounds"] = {"query.sketch:30": {"error": float(ord(task)), "energy": 1000.0}}
    safetensors_writer.save_tensors(folder / f"{task}.safetensors", tensors, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task in TASKS:
        write(tmp_path, task, "second-moment", "sketch:30", "mean", "gradient")
    return tmp_path


@pytest.mark.parametrize("kind", ["second-moment", "sketch"])
def test_every_input_comes_once_with_its_layers_and_each_task_s_second_moment(folder: Path, kind: str) -> None:
    features = FeatureSet.open(folder).select([kind])
    assert features.kind == kind
    groups = list(features.layers())
    assert [inputs.layers for inputs in groups] == features.groups() == [["query", "value"], ["wo"]]
    for inputs in groups:
        for task in TASKS:
            X = tokens(task, inputs.layers[0])
            torch.testing.assert_close(inputs.moments[task].dense(), X.T @ X / len(X))
    (first, _) = features.layers(per_token=False)
    assert torch.equal(first.moments["a"].matrix, tokens("a") if kind == "sketch" else groups[0].moments["a"].matrix)


@pytest.mark.parametrize("kind", ["second-moment", "sketch"])
@pytest.mark.parametrize("task", ["b", "unknown"])
def test_others_weigh_the_same_but_for_the_own(folder: Path, kind: str, task: str) -> None:
    (inputs, _) = FeatureSet.open(folder).select([kind]).layers()
    C = inputs.others(task).dense()
    moments = [X.T @ X / X.square().sum() for X in (tokens(other) for other in TASKS if other != task)]
    torch.testing.assert_close(C / C.trace(), sum(moments) / len(moments))
    if kind == "second-moment":
        assert float(C.trace()) == pytest.approx(1)


def test_rows_can_be_taken_as_they_are_stored(folder: Path) -> None:
    (inputs, _) = FeatureSet.open(folder).select(["sketch"]).layers(per_token=False)
    assert torch.equal(inputs.others("b", weighted=False).matrix, torch.cat([tokens("a"), tokens("c")]))


def test_what_a_sketch_may_hide_is_the_mean_over_the_others(folder: Path) -> None:
    inputs = next(FeatureSet.open(folder).select(["sketch"]).layers())
    assert inputs.others_unseen("b") == pytest.approx((ord("a") + ord("c")) / 2000)
    inputs = next(FeatureSet.open(folder).select(["second-moment"]).layers())
    assert inputs.others_unseen("b") == 0


def test_a_gradient_is_each_layer_s_own(folder: Path) -> None:
    inputs = next(FeatureSet.open(folder).layers())
    assert torch.equal(inputs.gradient("a", "value"), tokens("a")[4:8])
    assert torch.equal(inputs.gradient("a", "query"), tokens("a")[:4])


def test_without_a_statistic_each_layer_comes_alone(folder: Path) -> None:
    groups = list(FeatureSet.open(folder).layers())
    assert [inputs.layers for inputs in groups] == [["query"], ["value"], ["wo"]]
    assert not groups[0].moments


def test_one_task_has_no_others() -> None:
    inputs = FeatureSetLayer(["l"], {"a": SecondMoment(torch.eye(2), False)}, {"a": 0.0}, {})
    with pytest.raises(OsrmError, match="no features of a task other than 'a'"):
        inputs.others("a")


def test_the_best_kind_that_all_hold_is_selected(tmp_path: Path) -> None:
    write(tmp_path, "a", "mean", "sketch:30", "second-moment")
    write(tmp_path, "b", "mean", "sketch:30")
    features = FeatureSet.open(tmp_path)
    assert features.select().statistics == {"a": "sketch:30", "b": "sketch:30"}
    assert features.only(["a"]).select().kind == "second-moment"
    with pytest.raises(OsrmError, match=r"a test needs second-moment of every task, .*b\.safetensors holds mean, sk"):
        features.select(["second-moment"], "a test")


def test_a_set_knows_its_base_model_layers_and_other_tasks(folder: Path) -> None:
    features = FeatureSet.open(folder)
    assert features.base.name == "tiny"
    assert (features.max_width, list(features.target_layers)) == (12, list(LAYERS))
    assert features.paths == [folder / f"{task}.safetensors" for task in TASKS]
    assert features.other_tasks("b") == ["a", "c"]
    with pytest.raises(OsrmError, match="holds no features of a task other than 'b'"):
        features.only(["b"]).other_tasks("b")
