import hashlib
import json
import re
from pathlib import Path

import pytest

from osrm_cli import __version__
from osrm_cli.errors import OsrmError
from osrm_cli.storage import input_files, provenance
from osrm_cli.storage.records import BaseModelId

OURS, THEIRS = BaseModelId("ours", None, "a" * 64), BaseModelId("theirs", "c0ffee" * 5, "b" * 64)


def test_record_says_where_from(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    facts = provenance.make_artifact_record("collect", {"seed": 3}, [tmp_path / "in"], base=OURS, tokens=7)
    assert facts == {
        "tool": "osrm-cli",
        "version": __version__,
        "command": "collect",
        "settings": {"seed": 3},
        "base": {"name": "ours", "revision": None, "sha256": "a" * 64},
        "inputs": [{"path": (tmp_path / "in").as_posix(), "sha256": hashlib.sha256(b"text").hexdigest()}],
        "tokens": 7,
    }
    assert BaseModelId.from_record(facts) == OURS
    assert BaseModelId.from_record(provenance.make_artifact_record("merge", {})) is None


def test_equal_facts_are_equal_bytes() -> None:
    assert provenance.to_json({"b": 1, "a": {"d": 2, "c": "ä"}}) == provenance.to_json(
        {"a": {"c": "ä", "d": 2}, "b": 1}
    )
    assert provenance.to_json({"a": "ä"}) == '{\n  "a": "ä"\n}\n'
    half = provenance.to_json({"a": "\ud800"})
    assert json.loads(half.encode()) == {"a": "\ud800"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"a": float("nan")}, "a"),
        ({"a": {"b": [1.0, {"c": float("-inf")}]}}, "a.b.1.c"),
        ({"a": (float("inf"),)}, "a.0"),
    ],
    ids=str,
)
def test_a_number_that_is_not_finite_is_named(value: dict[str, object], name: str) -> None:
    with pytest.raises(OsrmError, match=rf"^{re.escape(name)} is not a finite number: a weight or a label"):
        provenance.to_json(value)


def test_digest_of_a_folder_sees_names_and_contents_but_nothing_hidden(tmp_path: Path) -> None:
    for name, text in (("b", "2"), ("a", "1"), ("deep/c", "3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    digest = input_files.sha256(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d").write_text("x")
    assert input_files.sha256(tmp_path) == digest
    (tmp_path / "deep" / "c").write_text("4")
    changed = input_files.sha256(tmp_path)
    (tmp_path / "deep" / "c").write_text("3")
    assert input_files.sha256(tmp_path) == digest != changed
    (tmp_path / "a").rename(tmp_path / "z")
    assert input_files.sha256(tmp_path) != digest


def test_odd_base_is_named() -> None:
    provenance.check_base_provenance({Path("one"): OURS, Path("two"): OURS})
    provenance.check_base_provenance({})
    with pytest.raises(OsrmError, match=r"^odd comes from base model theirs at c0ffee.*, but one from ours"):
        provenance.check_base_provenance({Path("odd"): THEIRS, Path("one"): OURS, Path("two"): OURS})
