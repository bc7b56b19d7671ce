"""The streaming writer writes what safetensors reads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from osrm_cli.storage.safetensors_writer import DTYPES, write_safetensors

SHAPES = st.lists(st.integers(0, 5), max_size=4)


@settings(deadline=None, max_examples=40)
@given(
    tensors=st.dictionaries(
        st.text('abé."\\ 0', min_size=1, max_size=30), st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6
    ),
    order=st.randoms(),
)
def test_safetensors_reads_what_was_written(tmp_path_factory, tensors, order):
    path = tmp_path_factory.mktemp("stream") / "x.safetensors"
    generator = torch.Generator().manual_seed(0)
    expected = {
        name: (torch.randn(shape, generator=generator) * 3).to(dtype) for name, (dtype, shape) in tensors.items()
    }
    names = list(expected)
    order.shuffle(names)
    with write_safetensors(path, sorted(expected)) as stream:
        for name in names:
            stream.add(name, expected[name])
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_equal_tensors_are_equal_bytes_and_views_are_written_as_they_look(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    for name in ("one", "two"):
        with write_safetensors(tmp_path / name, ["turned", "part"]) as stream:
            stream.add("turned", base.T)
            stream.add("part", base[1:3, ::2])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = load_file(tmp_path / "one")
    assert torch.equal(found["turned"], base.T)
    assert torch.equal(found["part"], base[1:3, ::2])


def test_raw_bytes_in_pieces(tmp_path):
    tensor = torch.randn(7, 3)
    data = tensor.numpy().tobytes()
    with write_safetensors(tmp_path / "x", ["a"]) as stream:
        stream.add_bytes("a", "F32", (7, 3), [data[:10], data[10:]])
        assert stream.size == len(data)
    assert torch.equal(load_file(tmp_path / "x")["a"], tensor)


def test_what_was_announced_must_come_once(tmp_path):
    with (
        pytest.raises(ValueError, match="tensors missing: \\['b'\\]"),
        write_safetensors(tmp_path / "x", ["a", "b"]) as stream,
    ):
        stream.add("a", torch.ones(1))
    with pytest.raises(ValueError, match="c was not announced"), write_safetensors(tmp_path / "x", ["a"]) as stream:
        stream.add("c", torch.ones(1))
    with write_safetensors(tmp_path / "x", ["a"]) as stream:
        stream.add("a", torch.ones(1))
        with pytest.raises(ValueError, match="a was not announced, or was added twice"):
            stream.add("a", torch.ones(1))
