"""A layer's weight in the files of a base model, whichever way round it is stored."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from osrm_cli.errors import OsrmError
from osrm_cli.models.checkpoint import Checkpoint


def stored(folder: Path, weight: torch.Tensor) -> Checkpoint:
    save_file({"layer.weight": weight.contiguous()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def test_a_weight_comes_as_its_layer_has_it(tmp_path: Path) -> None:
    W = torch.arange(15.0).view(3, 5)
    assert stored(tmp_path, W).read_weight("layer", (3, 5), False).equal(W)
    assert stored(tmp_path, W.T).read_weight("layer", (3, 5), False).equal(W)


def test_a_square_weight_does_not_say_which_way_round_it_is(tmp_path: Path) -> None:
    W = torch.arange(9.0).view(3, 3)
    assert stored(tmp_path, W).read_weight("layer", (3, 3), False).equal(W)
    assert stored(tmp_path, W.T).read_weight("layer", (3, 3), True).equal(W)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_refused(tmp_path: Path, value: float) -> None:
    W = torch.ones(3, 5)
    W[1, 2] = value
    with pytest.raises(OsrmError, match=r"model\.safetensors: NaN or infinity in layer\.weight"):
        stored(tmp_path, W).read_weight("layer", (3, 5), False)


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match=r"layer\.weight is \(3, 4\), expected \(3, 5\)"):
        stored(tmp_path, torch.ones(3, 4)).read_weight("layer", (3, 5), False)
