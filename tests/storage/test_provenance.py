import hashlib
import json
from pathlib import Path

import pytest

from osrm_cli import __version__
from osrm_cli.errors import OsrmError
from osrm_cli.storage import provenance
from osrm_cli.storage.provenance import BaseModelId

OURS, THEIRS = BaseModelId("ours", None, "a" * 64), BaseModelId("theirs", "c0ffee" * 5, "b" * 64)


def test_record_says_where_from(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    facts = provenance.make_record("collect", {"seed": 3}, [tmp_path / "in"], base=OURS, tokens=7)
    assert facts == {
        "tool": "osrm-cli",
        "version": __version__,
        "command": "collect",
        "settings": {"seed": 3},
        "base": {"name": "ours", "revision": None, "sha256": "a" * 64},
        "inputs": [{"path": (tmp_path / "in").as_posix(), "sha256": hashlib.sha256(b"text").hexdigest()}],
        "tokens": 7,
    }
    assert BaseModelId.of(facts) == OURS
    assert BaseModelId.of(provenance.make_record("merge", {})) is None


def test_equal_facts_are_equal_bytes() -> None:
    assert provenance.to_json({"b": 1, "a": {"d": 2, "c": "ä"}}) == provenance.to_json(
        {"a": {"c": "ä", "d": 2}, "b": 1}
    )
    assert provenance.to_json({"a": "ä"}) == '{\n  "a": "ä"\n}\n'
    half = provenance.to_json({"a": "\ud800"})
    assert json.loads(half.encode()) == {"a": "\ud800"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        provenance.to_json({"a": float("nan")})


def test_written_and_read_again(tmp_path: Path) -> None:
    assert provenance.read_record(tmp_path) == {}
    provenance.write_record(tmp_path, {"command": "train", "a": [1, "ü"]})
    assert provenance.read_record(tmp_path) == {"command": "train", "a": [1, "ü"]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "osrm.json").write_bytes(content)
    with pytest.raises(OsrmError, match=r"osrm\.json"):
        provenance.read_record(tmp_path)


def test_digest_of_a_folder_sees_names_and_contents_but_nothing_hidden(tmp_path: Path) -> None:
    for name, text in (("b", "2"), ("a", "1"), ("deep/c", "3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    digest = provenance.sha256(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d").write_text("x")
    assert provenance.sha256(tmp_path) == digest
    (tmp_path / "deep" / "c").write_text("4")
    changed = provenance.sha256(tmp_path)
    (tmp_path / "deep" / "c").write_text("3")
    assert provenance.sha256(tmp_path) == digest != changed
    (tmp_path / "a").rename(tmp_path / "z")
    assert provenance.sha256(tmp_path) != digest


def test_odd_base_is_named() -> None:
    provenance.check_same_base_model({Path("one"): OURS, Path("two"): OURS})
    provenance.check_same_base_model({})
    with pytest.raises(OsrmError, match=r"^odd comes from base model theirs at c0ffee.*, but one from ours"):
        provenance.check_same_base_model({Path("odd"): THEIRS, Path("one"): OURS, Path("two"): OURS})


TASK = {"name": "sst2", "columns": ["sentence"], "labels": ["bad", "good"], "metrics": ["accuracy"], "max_length": None}
WRONG = [
    ("task", 5),
    ("task", ["sst2"]),
    ("task", TASK | {"name": 5}),
    ("task", TASK | {"name": "a\0b"}),
    ("task", TASK | {"name": "../up"}),
    ("task", TASK | {"labels": "bad"}),
    ("task", TASK | {"labels": ["\ud800"]}),
    ("task", TASK | {"max_length": "128"}),
    ("settings", []),
    ("settings", {"max_length": "128"}),
    ("base", {"name": "minilm"}),
    ("base", "minilm"),
    ("data", {"source": 7}),
    ("inputs", {"path": "a"}),
    ("inputs", [{"sha256": "0"}]),
    ("inputs", [{"path": "a", "dev": 3}]),
    ("form", "lora"),
    ("rescalers", {"layer": "much"}),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key} {value!r:.30}" for key, value in WRONG])
def test_a_wrong_value_is_named_with_its_file(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "osrm.json").write_text(json.dumps({"task": TASK, "settings": None, key: value}))
    with pytest.raises(OsrmError) as refusal:
        provenance.read_record(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/osrm.json cannot be read: {key}")
    assert "\n" not in str(refusal.value)


def test_another_file_s_content_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "osrm.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(OsrmError, match=r"osrm\.json cannot be read: peft_type and its other keys"):
        provenance.read_record(tmp_path)


def test_what_nobody_reads_is_for_people(tmp_path: Path) -> None:
    record = {"task": TASK, "note": [1, {"any": "thing"}], "settings": {"lr": "fast", "max_length": None}}
    provenance.write_record(tmp_path, record)
    assert provenance.read_record(tmp_path) == record
