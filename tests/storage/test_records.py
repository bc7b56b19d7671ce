import json
from pathlib import Path

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.storage import provenance, records

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
    ("settings", {"objective": 0}),
    ("settings", {"seed": -1}),
    ("settings", {"eps": "x"}),
    ("settings", {"statistic": ["mean"]}),
    ("base", {"name": "minilm"}),
    ("base", "minilm"),
    ("data", {"source": 7}),
    ("inputs", {"path": "a"}),
    ("inputs", [{"sha256": "0"}]),
    ("inputs", [{"path": "a", "dev": 3}]),
    ("form", "lora"),
    ("rescalers", {"layer": "much"}),
]


def test_written_and_read_again(tmp_path: Path) -> None:
    assert records.read_record(tmp_path) == {}
    provenance.write_record(tmp_path, {"command": "train", "a": [1, "ü"]})
    assert records.read_record(tmp_path) == {"command": "train", "a": [1, "ü"]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "osrm.json").write_bytes(content)
    with pytest.raises(OsrmError, match=r"osrm\.json"):
        records.read_record(tmp_path)


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key} {value!r:.30}" for key, value in WRONG])
def test_a_wrong_value_is_named_with_its_file(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "osrm.json").write_text(json.dumps({"task": TASK, "settings": None, key: value}))
    with pytest.raises(OsrmError) as refusal:
        records.read_record(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/osrm.json cannot be read: {key}")
    assert "\n" not in str(refusal.value)


def test_another_file_s_content_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "osrm.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(OsrmError, match=r"osrm\.json cannot be read: peft_type and its other keys"):
        records.read_record(tmp_path)


def test_what_nobody_reads_is_for_people(tmp_path: Path) -> None:
    record = {"task": TASK, "note": [1, {"any": "thing"}], "settings": {"lr": "fast", "max_length": None}}
    provenance.write_record(tmp_path, record)
    assert records.read_record(tmp_path) == record
