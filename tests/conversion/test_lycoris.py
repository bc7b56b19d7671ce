"""LyCORIS' files as plain LoRA, by the formulas of its layers."""

import pytest
import torch

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from tests.adapters.formats.factories import CONV, OUT, QUERY, deltas, write_file

FLAT = {layer: "lora_unet_" + layer.replace(".", "_") for layer in (QUERY, OUT, CONV)}


def draw(seed, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def loha(seed=0):
    """A linear layer and a convolution in Tucker's form, with the differences of the weights that they stand for."""
    line = draw(seed, hada_w1_a=(6, 2), hada_w1_b=(2, 4), hada_w2_a=(6, 2), hada_w2_b=(2, 4))
    conv = draw(seed, hada_t1=(2, 2, 3, 3), hada_w1_a=(2, 5), hada_w1_b=(2, 3), hada_t2=(2, 2, 3, 3))
    conv |= draw(seed + 9, hada_w2_a=(2, 5), hada_w2_b=(2, 3))
    first, second = (
        torch.einsum("ijkl,ip,jr->prkl", conv[f"hada_t{i}"], conv[f"hada_w{i}_a"], conv[f"hada_w{i}_b"]) for i in (1, 2)
    )
    dense = (line["hada_w1_a"] @ line["hada_w1_b"]) * (line["hada_w2_a"] @ line["hada_w2_b"])
    return {QUERY: line, CONV: conv}, {QUERY: 0.5 * dense, CONV: 0.5 * (first * second).flatten(1)}


def lokr(seed=0):
    whole = draw(seed, lokr_w1=(2, 2), lokr_w2=(3, 2))
    parts = draw(seed, lokr_w1=(2, 3), lokr_w2_a=(2, 1), lokr_w2_b=(1, 2))
    return {QUERY: whole, OUT: parts}, {
        QUERY: torch.kron(whole["lokr_w1"], whole["lokr_w2"]),  # no rank, no scaling
        OUT: torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]),
    }


def locon(seed=0):
    line = draw(seed, **{"lora_down.weight": (2, 4), "lora_up.weight": (6, 2)})
    conv = draw(
        seed, **{"lora_down.weight": (2, 3, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (5, 2, 1, 1)}
    )
    eye = torch.eye(27, dtype=torch.float64).reshape(27, 3, 3, 3)  # every patch of one pixel
    outputs = torch.nn.functional.conv2d(eye, conv["lora_down.weight"])
    outputs = torch.nn.functional.conv2d(outputs, conv["lora_mid.weight"])
    outputs = torch.nn.functional.conv2d(outputs, conv["lora_up.weight"])
    dense = 0.5 * line["lora_up.weight"] @ line["lora_down.weight"]
    return {QUERY: line, CONV: conv}, {QUERY: dense, CONV: 0.5 * outputs.reshape(27, 5).T}


KINDS = {"LoHa": loha, "LoKr": lokr, "LoCon": locon}


def write(path, layers):
    tensors = {f"{FLAT[layer]}.{name}": tensor.float() for layer, own in layers.items() for name, tensor in own.items()}
    return write_file(path, tensors | {f"{FLAT[layer]}.alpha": torch.tensor(1.0) for layer in layers})


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_lycoris(tmp_path, kind):
    layers, expected = KINDS[kind]()
    path = write(tmp_path / "style.safetensors", layers)
    with pytest.raises(OsrmError, match=r"LoHa|LoKr|a third factor") as found:
        open_adapter(path)
    assert "osrm convert" in str(found.value.hint)
    result = convert_adapter(path, tmp_path / "plain.safetensors", "kohya")
    assert (result.source_format, result.source_kind) == ("kohya", kind)
    ours = deltas(open_adapter(tmp_path / "plain.safetensors"))
    assert ours.keys() == expected.keys()
    for layer, delta in expected.items():
        torch.testing.assert_close(ours[layer], delta, rtol=1e-5, atol=1e-5)
    if CONV in expected:
        assert open_adapter(tmp_path / "plain.safetensors").layers[CONV].kernel == (3, 3)


def test_a_kernel_that_the_tensors_do_not_tell_is_that_of_the_layer(tmp_path):
    layers = {CONV: draw(1, hada_w1_a=(5, 2), hada_w1_b=(2, 27), hada_w2_a=(5, 2), hada_w2_b=(2, 27))}
    convert_adapter(write(tmp_path / "a.safetensors", layers), tmp_path / "a")
    assert open_adapter(tmp_path / "a").layers[CONV].weight_shape == (5, 3, 3, 3)


@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_they_go_through_a_merge(tmp_path, method):
    for name, seed in {"a": 1, "b": 2}.items():
        write(tmp_path / f"{name}.safetensors", loha(seed)[0])
        convert_adapter(tmp_path / f"{name}.safetensors", tmp_path / name)
    merge_adapters([tmp_path / "a", tmp_path / "b"], method, out=tmp_path / "merged")
    convert_adapter(tmp_path / "merged", tmp_path / "merged.safetensors", "kohya")
    assert set(open_adapter(tmp_path / "merged.safetensors").layers) == {QUERY, CONV}


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"hada_w1_a": (6, 2), "diff_b": (6,)}, "is not LoRA, LoHa or LoKr"), ({"hada_w1_a": (6, 2)}, "hada_w1_b")],
)
def test_other_tensors_are_refused(tmp_path, extra, message):
    path = write(tmp_path / "a.safetensors", {QUERY: draw(1, **extra)})
    with pytest.raises(OsrmError, match=message):
        convert_adapter(path, tmp_path / "b")
