"""Pipes, devices and links that lead in circles are refused before anything waits for them; digests of files."""

import hashlib
import os
from pathlib import Path

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import check_input_folder, check_regular_file, joint_digest, read_json, sha256


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert read_json(tmp_path / "b.json", "") == {"x": 1}


def test_others_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for name, reason in {
        "pipe": "is a pipe, expected a file",
        "zero": "is a device, expected a file",
        "self": "cannot be read: Too many levels of symbolic links",
        "nowhere": "is missing",
        ".": "is a folder, expected a file",
    }.items():
        with pytest.raises(OsrmError, match=reason):
            check_regular_file(tmp_path / name)


def test_a_folder_of_files_may_hold_folders_but_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/link").symlink_to(tmp_path)
    check_input_folder(tmp_path)
    with pytest.raises(OsrmError, match="deep/link is a link to a folder"):
        check_input_folder(tmp_path, recursive=True)
    os.mkfifo(tmp_path / ".hidden")
    check_input_folder(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OsrmError, match="pipe is a pipe"):
        check_input_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")], ids=len)
def test_damaged_json_is_named(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OsrmError, match=r"a\.json cannot be read") as caught:
        read_json(tmp_path / "a.json", "write it again")
    assert caught.value.hint == "write it again"


def test_digest_of_a_folder_is_that_of_its_names_and_files(tmp_path: Path) -> None:
    contents = {"a": b"1", "b/c": b"2" * (1 << 20), "d": b""}
    for name, content in {**contents, ".hidden": b"3", "b/.cache/x": b"4"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    lines = "".join(f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in contents.items())
    assert sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert joint_digest({name: tmp_path / name for name in contents}) == sha256(tmp_path)
    assert joint_digest({name: tmp_path / name for name in reversed(contents)}) != sha256(tmp_path)
    assert joint_digest({}) == hashlib.sha256().hexdigest()
    with pytest.raises(OsrmError, match="gone is missing"):
        joint_digest({"a": tmp_path / "a", "gone": tmp_path / "gone"})
