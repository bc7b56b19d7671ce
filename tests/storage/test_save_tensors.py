import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from osrm_cli.errors import OsrmError
from osrm_cli.storage import input_files, safetensors_writer

SMAPS = Path("/proc/self/smaps")


def test_written_and_read_again(tmp_path: Path) -> None:
    made = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    safetensors_writer.save_tensors(tmp_path / "x.safetensors", made, {"seed": 1})
    assert input_files.read_safetensors_record(tmp_path / "x.safetensors") == {"seed": 1}
    with input_files.open_safetensors(tmp_path / "x.safetensors") as file:
        for name, tensor in made.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype


def test_same_contents_same_bytes(tmp_path: Path) -> None:
    parts = {f"t{i}": torch.full((3,), float(i)) for i in range(20)}
    facts = {f"k{i}": i for i in range(20)}
    for name, order in (("one", 1), ("two", -1)):
        safetensors_writer.save_tensors(
            tmp_path / name, dict(list(parts.items())[::order]), dict(list(facts.items())[::order])
        )
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
    safetensors_writer.save_tensors(path, {"a": torch.zeros(1000)}, {})
    damage(path, how)
    with pytest.raises(OsrmError, match=rf"x\.safetensors {how}"):
        input_files.open_safetensors(path)


def test_metadata_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert input_files.read_safetensors_record(path) == {}
    for text in ("{", "[1]", "3", json.dumps("text")):
        save_file({"a": torch.zeros(1)}, path, metadata={"osrm": text})
        with pytest.raises(OsrmError, match="its metadata cannot be read"):
            input_files.read_safetensors_record(path)


@pytest.mark.skipif(not SMAPS.is_file(), reason="only Linux tells what is mapped")
def test_what_was_read_of_a_large_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    made = {f"t{i}": torch.randn(256, 1024) for i in range(24)}  # a MiB each
    safetensors_writer.save_tensors(path := tmp_path / "large.safetensors", made, {})
    file, most = input_files.SafetensorsFile(path), 0
    for name in [*made, *reversed(made)]:
        assert torch.equal(file.get_tensor(name), made[name])
        most = max(most, mapped(path))
    assert 1 << 20 <= most <= 4 << 20, "of 24 MiB"
    kept = {name: file.get_tensor(name) for name in made}
    assert all(torch.equal(kept[name], made[name]) for name in made), "what is in use stays"


def mapped(path: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sizes = (re.search(r"^Rss:\s+(\d+) kB", entry, re.MULTILINE) for entry in entries if str(path) in entry)
    return sum(int(size[1]) << 10 for size in sizes if size)
