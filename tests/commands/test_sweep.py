import json
from pathlib import Path
from typing import Any

import pytest

from tests.osrm import osrm

ADAPTERS = ("adapters/mood", "adapters/pair", "adapters/score")
CLOSE = 0.01  # percent: a correlation of scores that hardly differ shows rounding


def swept(work: Path, *words: object, out: str = "sweep") -> dict[str, Any]:
    run = osrm("sweep", *ADAPTERS, *words, "--out", out, cwd=work)
    assert run.code == 0, run
    return dict(json.loads((work / out / "sweep.json").read_text()))


def merged_and_scored(work: Path, *words: object) -> dict[str, Any]:
    """What ``osrm merge`` and ``osrm eval`` say of the same merge."""
    run = osrm("merge", *ADAPTERS, *words, "--out", "m", "--overwrite", cwd=work)
    assert run.code == 0, run
    run = osrm("eval", "m", "--overwrite", cwd=work)
    assert run.code == 0, run
    return dict(json.loads((work / "m/scores.json").read_text()))


METHODS: list[tuple[object, ...]] = [
    ("task-arith",),
    ("ties", "--density", 0.5),
    ("regmean",),
    ("regmean++", "--samples", 8),
    ("fisher", "--samples", 8),
    ("emr",),
    ("ties", "--as", "model"),
]


@pytest.mark.parametrize("asked", METHODS, ids=str)
def test_every_point_is_what_merge_and_eval_say(work: Path, asked: tuple[object, ...]) -> None:
    found = swept(work, "--method", *asked, "--lambda", "0.4,1.5", "--validation-split", "train")
    assert [point["options"]["lambda"] for point in found["points"]] == [0.4, 1.5]
    for point in found["points"]:
        expected = merged_and_scored(work, "--method", *asked, "--lambda", point["options"]["lambda"])
        for task, row in point["test"]["tasks"].items():
            theirs = expected["tasks"][task]
            assert row["examples"] == theirs["examples"] == 24
            assert row["headline"] == pytest.approx(theirs["headline"], abs=CLOSE)
            assert row["metrics"] == pytest.approx(theirs["metrics"], abs=CLOSE)
        assert point["test"]["average"] == pytest.approx(expected["average"]["headline"], abs=CLOSE)


def test_singles_are_what_eval_says_of_each_adapter(work: Path) -> None:
    found = swept(work, "--validation-split", "train")
    for part, split in (("validation", "train"), ("test", "dev")):
        for task, row in found["single"][part]["tasks"].items():
            folder = f"adapters/{task}"
            assert osrm("eval", folder, "--split", split, "--overwrite", cwd=work).code == 0
            theirs = json.loads((work / folder / "scores.json").read_text())["tasks"][task]
            assert row["examples"] == theirs["examples"]
            assert row["headline"] == pytest.approx(theirs["headline"], abs=CLOSE)


def test_adamerging(work: Path) -> None:
    words = ("adapters/mood", "adapters/pair", "--method", "adamerging", "--samples", 8)
    more = ("--option", "steps=3", "--lambda", "0.3,1.0", "--validation-split", "train")
    run = osrm("sweep", *words, *more, cwd=work)
    assert run.code == 0, run
    points = json.loads((work / "sweep/sweep.json").read_text())["points"]
    for point in points:
        run = osrm("merge", *words, "--steps", 3, "--lambda", point["options"]["lambda"], "--overwrite", cwd=work)
        assert run.code == 0, run
        assert osrm("eval", "merged", "--overwrite", cwd=work).code == 0
        expected = json.loads((work / "merged/scores.json").read_text())["tasks"]
        for task, row in point["test"]["tasks"].items():
            assert row["headline"] == pytest.approx(expected[task]["headline"], abs=CLOSE)


@pytest.mark.parametrize("method", ["task-arith", "emr"])
def test_calibrated_points_are_what_calibrate_makes_of_the_merge(work: Path, method: str) -> None:
    words = ("--method", method, "--lambda", 0.6)
    found = swept(work, *words, "--calibrate", "--samples", 40, "--validation-split", "train")
    assert [point["calibrated"] for point in found["points"]] == [False, True]
    assert found["best"] == [
        {"method": method, "calibrated": False, "point": 0},
        {"method": method, "calibrated": True, "point": 1},
    ]
    expected = merged_and_scored(work, *words)
    assert osrm("calibrate", "m", "--samples", 40, "--out", "c", cwd=work).code == 0
    assert osrm("eval", "c", cwd=work).code == 0
    calibrated = json.loads((work / "c/scores.json").read_text())
    for point, theirs in zip(found["points"], (expected, calibrated), strict=True):
        for task, row in point["test"]["tasks"].items():
            assert row["headline"] == pytest.approx(theirs["tasks"][task]["headline"], abs=CLOSE)
    plain, mapped = (point["test"]["tasks"]["score"] for point in found["points"])
    assert plain != mapped
