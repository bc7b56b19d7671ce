import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from osrm_cli.artifacts import tensors
from osrm_cli.errors import OsrmError


def test_written_and_read_again(tmp_path: Path) -> None:
    made = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    tensors.save(tmp_path / "x.safetensors", made, {"seed": 1})
    assert tensors.read_facts(tmp_path / "x.safetensors") == {"seed": 1}
    with tensors.open_tensors(tmp_path / "x.safetensors") as file:
        for name, tensor in made.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype


def test_same_contents_same_bytes(tmp_path: Path) -> None:
    parts = {f"t{i}": torch.full((3,), float(i)) for i in range(20)}
    facts = {f"k{i}": i for i in range(20)}
    for name, order in (("one", 1), ("two", -1)):
        tensors.save(tmp_path / name, dict(list(parts.items())[::order]), dict(list(facts.items())[::order]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    contents = {
        "is empty": b"",
        "is damaged": whole[: len(whole) // 2],
        "is damaged or": b"\x80\x04 a pickle" * 9,
    }
    if how == "is missing":
        path.unlink()
    elif how == "is a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(contents[how])


@pytest.mark.parametrize("how", ["is missing", "is empty", "is damaged", "is damaged or", "is a folder"])
def test_damaged_file_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.safetensors"
    tensors.save(path, {"a": torch.zeros(1000)}, {})
    damage(path, how)
    with pytest.raises(OsrmError, match=rf"x\.safetensors {how}"):
        tensors.open_tensors(path)


def test_metadata_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert tensors.read_facts(path) == {}
    for text in ("{", "[1]", "3", json.dumps("text")):
        save_file({"a": torch.zeros(1)}, path, metadata={"osrm": text})
        with pytest.raises(OsrmError, match="its metadata cannot be read"):
            tensors.read_facts(path)
