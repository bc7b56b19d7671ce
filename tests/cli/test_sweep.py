import json
from pathlib import Path
from typing import Any

import pytest

from tests.run_cli import listing, osrm

ADAPTERS = ("adapters/mood", "adapters/pair", "adapters/score")
CLOSE = 0.01  # percent: a correlation of scores that hardly differ shows rounding


def swept(project_copy: Path, *words: object, out: str = "sweep") -> dict[str, Any]:
    run = osrm("sweep", *ADAPTERS, *words, "--out", out, cwd=project_copy)
    assert run.code == 0, run
    return dict(json.loads((project_copy / out / "sweep.json").read_text()))


def merged_and_scored(project_copy: Path, *words: object) -> dict[str, Any]:
    """What ``osrm merge`` and ``osrm eval`` say of the same merge."""
    run = osrm("merge", *ADAPTERS, *words, "--out", "m", "--overwrite", cwd=project_copy)
    assert run.code == 0, run
    run = osrm("eval", "m", "--overwrite", cwd=project_copy)
    assert run.code == 0, run
    return dict(json.loads((project_copy / "m/scores.json").read_text()))


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
def test_every_point_is_what_merge_and_eval_say(project_copy: Path, asked: tuple[object, ...]) -> None:
    found = swept(project_copy, "--method", *asked, "--lambda", "0.4,1.5", "--validation-split", "train")
    assert [point["options"]["lambda"] for point in found["points"]] == [0.4, 1.5]
    for point in found["points"]:
        expected = merged_and_scored(project_copy, "--method", *asked, "--lambda", point["options"]["lambda"])
        for task, row in point["test"]["tasks"].items():
            theirs = expected["tasks"][task]
            assert row["examples"] == theirs["examples"] == 24
            assert row["headline"] == pytest.approx(theirs["headline"], abs=CLOSE)
            assert row["metrics"] == pytest.approx(theirs["metrics"], abs=CLOSE)
        assert point["test"]["average"] == pytest.approx(expected["average"]["headline"], abs=CLOSE)


def test_singles_are_what_eval_says_of_each_adapter(project_copy: Path) -> None:
    found = swept(project_copy, "--validation-split", "train")
    for part, split in (("validation", "train"), ("test", "dev")):
        for task, row in found["single"][part]["tasks"].items():
            folder = f"adapters/{task}"
            assert osrm("eval", folder, "--split", split, "--overwrite", cwd=project_copy).code == 0
            theirs = json.loads((project_copy / folder / "scores.json").read_text())["tasks"][task]
            assert row["examples"] == theirs["examples"]
            assert row["headline"] == pytest.approx(theirs["headline"], abs=CLOSE)


def test_adamerging(project_copy: Path) -> None:
    words = ("adapters/mood", "adapters/pair", "--method", "adamerging", "--samples", 8)
    more = ("--option", "steps=3", "--lambda", "0.3,1.0", "--validation-split", "train")
    run = osrm("sweep", *words, *more, cwd=project_copy)
    assert run.code == 0, run
    points = json.loads((project_copy / "sweep/sweep.json").read_text())["points"]
    for point in points:
        run = osrm(
            "merge", *words, "--steps", 3, "--lambda", point["options"]["lambda"], "--overwrite", cwd=project_copy
        )
        assert run.code == 0, run
        assert osrm("eval", "merged", "--overwrite", cwd=project_copy).code == 0
        expected = json.loads((project_copy / "merged/scores.json").read_text())["tasks"]
        for task, row in point["test"]["tasks"].items():
            assert row["headline"] == pytest.approx(expected[task]["headline"], abs=CLOSE)


@pytest.mark.parametrize("method", ["task-arith", "emr"])
def test_calibrated_points_are_what_calibrate_makes_of_the_merge(project_copy: Path, method: str) -> None:
    words = ("--method", method, "--lambda", 0.6)
    found = swept(project_copy, *words, "--calibrate", "--samples", 40, "--validation-split", "train")
    assert [point["calibrated"] for point in found["points"]] == [False, True]
    assert found["best"] == [
        {"method": method, "calibrated": False, "point": 0},
        {"method": method, "calibrated": True, "point": 1},
    ]
    expected = merged_and_scored(project_copy, *words)
    assert osrm("calibrate", "m", "--samples", 40, "--out", "c", cwd=project_copy).code == 0
    assert osrm("eval", "c", cwd=project_copy).code == 0
    calibrated = json.loads((project_copy / "c/scores.json").read_text())
    for point, theirs in zip(found["points"], (expected, calibrated), strict=True):
        for task, row in point["test"]["tasks"].items():
            assert row["headline"] == pytest.approx(theirs["tasks"][task]["headline"], abs=CLOSE)
    plain, mapped = (point["test"]["tasks"]["score"] for point in found["points"])
    assert plain != mapped


def test_best_is_chosen_on_one_half_and_reported_on_the_other(project_copy: Path) -> None:
    found = swept(project_copy, "--lambda", "0:2:0.5", "--predictions")
    points, test = found["points"], found["labels"]["test"]
    chosen = max(range(5), key=lambda index: points[index]["validation"]["average"])
    assert found["best"] == [{"method": "task-arith", "calibrated": False, "point": chosen}]
    for point in (found["single"], points[chosen]):
        for part in ("validation", "test"):
            assert {task: row["examples"] for task, row in point[part]["tasks"].items()} == dict.fromkeys(test, 12)
        given = point["test"]["predictions"]
        for task in ("mood", "pair"):
            hits = 100 * sum(map(int.__eq__, given[task], test[task])) / 12
            assert hits == pytest.approx(point["test"]["tasks"][task]["headline"])
    whole = merged_and_scored(project_copy, "--lambda", points[1]["options"]["lambda"])["tasks"]
    for task in ("mood", "pair"):  # equal halves: their mean is the whole
        halves = [points[1][part]["tasks"][task]["headline"] for part in ("validation", "test")]
        assert sum(halves) / 2 == pytest.approx(whole[task]["headline"])


def test_output(project_copy: Path) -> None:
    words = ("--method", "task-arith", "--method", "ties", "--density", "0.2,0.5", "--lambda", "0.5,1", "--limit", 6)
    found = swept(project_copy, *words)
    assert listing(project_copy / "sweep") == {"sweep.json", "curve.png"}
    assert (project_copy / "sweep/curve.png").read_bytes().startswith(b"\x89PNG")
    assert set(found) == {
        *("tool", "version", "command", "settings", "base", "inputs", "data"),
        *("adapters", "single", "points", "best"),
    }
    assert [(point["method"], point["options"].get("density")) for point in found["points"]] == [
        *[("task-arith", None)] * 2,
        *[("ties", 0.2)] * 2,
        *[("ties", 0.5)] * 2,
    ]
    assert found["settings"]["grid"] == {"lambda": [0.5, 1], "density": [0.2, 0.5], "seed": [0]}
    assert found["adapters"]["mood"]["train"]["lr"] == 0.01
    assert found["inputs"] == [
        {"path": f"adapters/{task}", "sha256": row["sha256"]} for task, row in found["adapters"].items()
    ]
    swept(project_copy, *words, out="again")
    for name in ("sweep.json", "curve.png"):
        assert (project_copy / "again" / name).read_bytes() == (project_copy / "sweep" / name).read_bytes()
    run = osrm("sweep", *ADAPTERS, *words, "--json", "--out", "third", cwd=project_copy)
    printed = json.loads(run.stdout)
    assert printed == {"path": "third", **{key: found[key] for key in ("single", "points", "best")}}


def test_table_and_progress(project_copy: Path) -> None:
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true", ""))
    run = osrm("sweep", *ADAPTERS, "--lambda", "0.5,1", "--task", "mood", "--limit", 8, cwd=project_copy)
    assert run.code == 0, run
    assert "best by validation" in run.stdout
    assert "single adapters" in run.stdout
    assert "sweep singles" in run.stderr
    assert "sweep task-arith" in run.stderr
    assert set(json.loads((project_copy / "sweep/sweep.json").read_text())["single"]["test"]["tasks"]) == {"mood"}


def test_half_precision_is_near(project_copy: Path) -> None:
    words = ("--lambda", "0.5", "--validation-split", "train")
    exact, half = (swept(project_copy, *words, "--dtype", name, out=name) for name in ("float32", "bfloat16"))
    assert half["settings"]["dtype"] == "bfloat16"
    for task in ("mood", "pair"):
        theirs, ours = (found["points"][0]["validation"]["tasks"][task]["headline"] for found in (exact, half))
        assert ours == pytest.approx(theirs, abs=10)


def test_dry_run_and_existing_output(project_copy: Path) -> None:
    before = listing(project_copy)
    run = osrm("sweep", *ADAPTERS, "--lambda", "0.1:1.0:0.1", "--dry-run", cwd=project_copy)
    assert (run.code, run.stdout) == (0, "would write sweep: 10 merges on mood, pair, score\n")
    assert listing(project_copy) == before
    (project_copy / "sweep").mkdir()
    run = osrm("sweep", *ADAPTERS, cwd=project_copy)
    assert (run.code, run.error) == (1, "sweep exists already")


def test_interrupted_leaves_nothing(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from osrm_cli.sweep.scorer import SweepScorer

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = listing(project_copy)
    monkeypatch.setattr(SweepScorer, "score", interrupt)
    run = osrm("sweep", *ADAPTERS, cwd=project_copy)
    assert (run.code, run.error) == (130, "interrupted")
    assert listing(project_copy) == before


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--method", "tie"), "unknown method 'tie'"),
        (("--density", "0.1"), "none of task-arith uses --density"),
        (("--lambda", "1:0.1:0.1"), "--lambda: '1:0.1:0.1' contains no values"),
        (("--lambda", ""), "--lambda: '' is neither a number"),
        (("--option", "nosuch=1"), "'nosuch' is not an option of a method"),
        (("--option", "lambda=1", "--lambda", "1"), "lambda is given twice"),
        (("--method", "ties", "--density", "1.5"), "option 'density' is 1.5, expected a share"),
        (("--task", "nosuch"), "no adapter belongs to task 'nosuch'"),
        (("--split", "nosuch"), "has no split 'nosuch'"),
        (("--limit", "1"), "two halves need two or more"),
        (("--max-length", "999"), "has positions for 256 tokens"),
        (("--method", "adamerging"), "task 'score' predicts a number"),
        (("--method", "regmean", "--features", "nowhere"), "nowhere/mood.safetensors is missing"),
    ],
    ids=str,
)
def test_bad_options_are_one_line(project_copy: Path, args: tuple[str, ...], error: str) -> None:
    before = listing(project_copy)
    run = osrm("sweep", *ADAPTERS, *args, cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert run.stdout == ""
    assert listing(project_copy) == before


def test_start_without_a_head(project_copy: Path) -> None:
    run = osrm("sweep", "starts/mood", cwd=project_copy)
    assert run.code == 1
    assert "starts/mood has no classification head" in run.error


@pytest.mark.parametrize("unused", [("--features", "nowhere"), ("--samples", "5")], ids=lambda words: words[0])
def test_an_unused_input_is_worth_a_note(project_copy, unused):
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true\n", ""))
    run = osrm("sweep", *ADAPTERS, *unused, "--dry-run", cwd=project_copy)
    assert run.code == 0
    assert f"none of the methods uses {unused[0]}" in run.stderr
