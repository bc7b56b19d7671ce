"""Names of layers: what wrappers add is taken off, and one layer under several names is one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.adapter import align_adapter_layers
from osrm_cli.adapters.names import align_layer_names
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from tests.factories import save

WEIGHTS = "adapter_model.safetensors"
WRAPPERS = {
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "doubled": lambda name: f"base_model.model.{name}",
    "adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "bare": lambda name: name.removeprefix("base_model.model."),
    "data parallel": lambda name: f"module.{name}",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    save(root / "a", "bert", 1, task_type=None)
    return root


def renamed(root, folder, rename):
    shutil.copytree(root / "a", folder)
    save_file({rename(name): tensor for name, tensor in load_file(root / "a" / WEIGHTS).items()}, folder / WEIGHTS)
    return open_adapter(folder)


@pytest.mark.parametrize("rename", WRAPPERS.values(), ids=WRAPPERS)
def test_what_wrappers_add_to_names_is_taken_off(root, tmp_path, rename):
    plain, wrapped = open_adapter(root / "a"), renamed(root, tmp_path / "wrapped", rename)
    assert wrapped.layers == plain.layers
    for layer in plain.layers:
        assert torch.equal(wrapped.delta(layer).dense(), plain.delta(layer).dense())


def test_two_tensors_of_one_layer_are_refused(root, tmp_path):
    shutil.copytree(root / "a", tmp_path / "twice")
    tensors = load_file(root / "a" / WEIGHTS)
    save_file(
        tensors | {f"module.{name}": tensor.clone() for name, tensor in tensors.items()}, tmp_path / "twice" / WEIGHTS
    )
    with pytest.raises(OsrmError, match="are two tensors of one layer"):
        open_adapter(tmp_path / "twice")


def test_an_adapter_of_the_bare_backbone_and_one_of_a_model_with_a_head(root, tmp_path):
    bare = renamed(root, tmp_path / "bare", lambda name: name.replace("model.bert.", "model."))
    plain = open_adapter(root / "a")
    assert not bare.layers.keys() & plain.layers.keys()
    for pair in ([bare, plain], [plain, bare]):
        for adapter in align_adapter_layers(pair):
            assert adapter.layers == plain.layers
            for layer in plain.layers:
                assert torch.equal(adapter.delta(layer).dense(), plain.delta(layer).dense())


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("layers.0.q", "model.layers.0.q", "model.layers.0.q"),
        ("model.layers.0.q", "model.layers.0.q", "model.layers.0.q"),
        ("layers.0.q", "layers.1.q", "layers.0.q"),
        ("language_model.model.layers.0.q", "model.language_model.layers.0.q", "model.language_model.layers.0.q"),
        ("model.layers.0.q", "model.language_model.layers.0.q", "model.language_model.layers.0.q"),
        ("encoder.layers.0.q", "decoder.layers.0.q", "encoder.layers.0.q"),
    ],
)
def test_names_are_those_of_the_whole_model(own, other, expected):
    assert align_layer_names([{own: 0}, {other: 0}]) == [{own: expected}, {other: other}]


def test_layers_that_only_one_adapter_has_get_the_same_prefix():
    first, _ = align_layer_names([{"layers.0.q": 0, "layers.0.up": 0}, {"model.layers.0.q": 0}])
    assert first == {"layers.0.q": "model.layers.0.q", "layers.0.up": "model.layers.0.up"}


def test_several_bare_adapters_and_one_that_only_another_bare_one_fits():
    names = align_layer_names([{"l.0.v": 0}, {"l.0.q": 0, "l.0.v": 0}, {"model.l.0.q": 0}, {"l.0.q": 0}])
    assert names == [
        {"l.0.v": "model.l.0.v"},
        {"l.0.q": "model.l.0.q", "l.0.v": "model.l.0.v"},
        {"model.l.0.q": "model.l.0.q"},
        {"l.0.q": "model.l.0.q"},
    ]


def test_names_that_fit_two_places_are_refused():
    with pytest.raises(ValueError, match=r"below 'decoder\.' and below 'encoder\.'"):
        align_layer_names([{"layers.0.q": 0}, {"encoder.layers.0.q": 0, "decoder.layers.0.q": 0}])
