"""The one reader of files of scores: what it returns, and what it says of damaged values."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import read_score_file, read_scored_record
from tests.reporting.factories import EXAMPLES, labels, scores, sweep

WRONG: list[Any] = [None, True, 7, -1, 0.5, "x", [], {}, [1], {"a": 1}, float("nan"), float("inf"), 10**400, "\ud800"]


def test_scores_of_eval(tmp_path: Path) -> None:
    path = scores(tmp_path / "scores.json", predictions=True)
    facts = json.loads(path.read_text())
    file = read_score_file(path)
    (merge,) = file.merges
    assert (merge.method, merge.options, merge.calibrated, merge.validation) == (
        "task-arith",
        {"lambda": 0.3},
        False,
        {},
    )
    assert file.single["cola"].headline == facts["tasks"]["cola"]["single"]
    assert file.single["cola"].predictions == ()
    assert merge.test["cola"].predictions == tuple(facts["predictions"]["cola"])
    assert merge.test["cola"].labels == tuple(labels("cola"))
    assert list(file.adapters) == list(merge.test) == ["cola", "mnli", "qqp", "stsb"]
    assert file.adapters["cola"].start["objective"] == "kaiming"  # type: ignore[index]


def test_scores_of_a_sweep(tmp_path: Path) -> None:
    path = sweep(tmp_path / "sweep.json", tasks=("cola", "stsb"))
    facts = json.loads(path.read_text())
    file = read_score_file(path)
    assert [merge.chosen for merge in file.merges] == [False, True, False]
    for merge, point in zip(file.merges, facts["points"], strict=True):
        for scored, key in ((merge.validation, "validation"), (merge.test, "test")):
            assert {task: score.headline for task, score in scored.items()} == {
                task: row["headline"] for task, row in point[key]["tasks"].items()
            }
    assert file.single["stsb"].examples == EXAMPLES == len(file.single["stsb"].predictions)
    assert file.single["stsb"].sha256 == "dev of stsb (half of it, by seed 0)"
    assert file.single_validation["cola"].headline == facts["single"]["validation"]["tasks"]["cola"]["headline"]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of a JSON value; of long lists the first element."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else []
    return (
        [path, *(place for key, part in inside for place in _places(part, (*path, key)))]
        if path
        else [place for key, part in inside for place in _places(part, (key,))]
    )


@pytest.mark.parametrize("kind", ["scores", "sweep"])
def test_every_wrong_value_is_harmless_or_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.json"
    if kind == "scores":
        scores(path, tasks=("cola", "stsb"), predictions=True)
    else:
        sweep(path, tasks=("cola", "stsb"))
    text = path.read_text()
    refused = 0
    for place in _places(json.loads(text)):
        for wrong in WRONG:
            facts = json.loads(text)
            *above, last = place
            holder = facts
            for key in above:
                holder = holder[key]
            holder[last] = wrong
            path.write_text(json.dumps(facts))
            said = _refusal(path)
            if said:
                refused += 1
                assert said.startswith(f"{path} ")
                assert "\n" not in said
                keys = re.split(r"[.: ]", said.removeprefix(f"{path} cannot be read: "))
                assert place[0] in keys or place in (("command",), ("settings", "split")) or "Invalid JSON" in said
    assert refused > 300


def _refusal(path: Path) -> str | None:
    try:
        read_score_file(path)
    except OsrmError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (("points", 0, "test", "tasks", "cola", "headline"), "3", "points.0.test.tasks.cola.headline: input should be"),
        (("single", "test", "predictions", "cola", 3), None, "single.test.predictions.cola.3: input should be a valid"),
        (("settings", "split"), 5, "settings.split: input should be a valid string"),
        (("settings",), [], "settings: "),
        (("best", 0, "point"), 99, "best: there is no point 99"),
        (("data", "cola", "sha256"), {}, "data.cola.sha256: the digest of 'dev' is missing"),
        (("data",), {}, "data: the digest of cola is missing"),
        (("points",), [], "points: tuple should have at least 1 item"),
        (("adapters", "cola", "train"), "x", "adapters.cola.train: input should be"),
        (("points", 1, "test", "tasks"), {}, "points.1.test.tasks: dictionary should have at least 1 item"),
        (("points", 1, "validation", "tasks", "extra"), {"headline": 1.0, "metrics": {"f1": 1.0}, "examples": 1},
         "points.1.validation: its tasks are not those of 'single'"),
    ],
)  # fmt: skip
def test_the_key_is_named(place: tuple[Any, ...], wrong: Any, message: str, tmp_path: Path) -> None:
    path = sweep(tmp_path / "sweep.json", tasks=("cola", "stsb"))
    facts = json.loads(path.read_text())
    holder = facts
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = wrong
    path.write_text(json.dumps(facts))
    with pytest.raises(OsrmError) as error:
        read_score_file(path)
    assert str(error.value).startswith(f"{path} cannot be read: {message}")
    assert error.value.hint == "recreate it with 'osrm sweep' of this version and --overwrite"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "is not a file of scores: it does not record which command wrote it"),
        (b'{"command": ["eval"]}', "is not a file of scores: it does not record which command wrote it"),
        (b'{"command": "merge"}', "is not a file of scores: 'osrm merge' wrote it"),
        (b'{"command": "diagnose"}', "is not a file of scores: 'osrm diagnose' wrote it"),
    ],
    ids=["empty", "no text", "deep", "a list", "a list as command", "a merge", "a diagnosis"],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(OsrmError, match=message):
        read_scored_record(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match="is missing") as error:
        read_score_file(tmp_path / "scores.json")
    assert error.value.hint == "make it with 'osrm eval' or 'osrm sweep'"
