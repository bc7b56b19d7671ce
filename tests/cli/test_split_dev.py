"""``--split-dev``: the first command is told, the others follow what was recorded, to the end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from osrm_cli.tasks.loading import load_split
from tests.run_cli import osrm

ROWS = {"mood": ("text,label", "w{} good,fine", "w{} bad,poor"), "tone": ("text,label", "fine w{},up", "poor w{},down")}


def write_data(folder: Path) -> Path:
    for task, (header, *rows) in ROWS.items():
        (folder / task).mkdir(parents=True)
        lines = [header, *(rows[number % 2].format(number) for number in range(40))]
        (folder / task / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


def recorded(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def run_once(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks without a dev split, to their merged folder."""
    work = tmp_path_factory.mktemp("share")
    write_data(work / "own")
    (work / "osrm.toml").write_text(f'model = "{tiny_model("bert")}"\nquiet = true\n')
    for command in (
        "collect --data own --split-dev 0.25 --samples 20",
        "init --each --rank 2",
        "train starts/mood starts/tone --epochs 1 --lr 0.01 --dtype float32",
        "merge adapters/mood adapters/tone --method task-arith --lambda 0.5",
        "eval merged",
        "sweep adapters/mood adapters/tone --method task-arith --lambda 0.3",
        "calibrate merged --out calibrated",
    ):
        run = osrm(*command.split(), cwd=work)
        assert run.code == 0, (command, run)
    return work


@pytest.fixture
def work(run_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_once, tmp_path / "work"))


def test_every_artifact_records_the_share(run_once: Path) -> None:
    source = "own?split-dev=0.25"
    for path in ("starts/mood/osrm.json", "adapters/mood/osrm.json", "merged/tasks/mood/osrm.json"):
        assert recorded(run_once / path)["data"]["source"] == source
    assert recorded(run_once / "calibrated/osrm.json")["calibration"]["tasks"]["mood"]["source"] == source
    assert osrm("verify", "merged", "calibrated", "adapters", "features", cwd=run_once).code == 0


def test_every_command_agrees_on_the_split(run_once: Path) -> None:
    data = f"{run_once / 'own'}?split-dev=0.25"
    train, dev = (load_split("mood", data, split) for split in ("train", "dev"))
    assert (len(train.examples), len(dev.examples)) == (30, 10)
    assert recorded(run_once / "adapters/mood/osrm.json")["data"]["sha256"] == train.sha256
    assert recorded(run_once / "adapters/mood/training.json")["dev"]["sha256"] == dev.sha256
    assert recorded(run_once / "merged/scores.json")["tasks"]["mood"]["examples"] == 10


@pytest.mark.parametrize("data", ["", "--data own", "--data own --split-dev 0.25", "--split-dev 0.25", "--data moved"])
def test_a_later_command_follows(work: Path, data: str) -> None:
    if "moved" in data:
        (work / "own").rename(work / "moved")
    expected = recorded(work / "merged/scores.json")["tasks"]
    run = osrm("eval", "merged", "--out", "again.json", *data.split(), cwd=work)
    assert run.code == 0, run
    assert recorded(work / "again.json")["tasks"] == expected


@pytest.mark.parametrize(
    "command", ["train starts/mood --out more", "eval merged --out x.json", "sweep adapters/mood --out s"]
)
def test_another_share_is_refused(work: Path, command: str) -> None:
    run = osrm(*command.split(), "--split-dev", "0.5", cwd=work)
    assert run.code == 1
    assert "--split-dev is 0.5, but" in run.error
    assert "was made with 0.25 of train as dev" in run.error


def test_data_with_a_dev_split_of_its_own(work: Path) -> None:
    other = write_data(work / "other")
    for task in ROWS:
        (other / task / "dev.csv").write_text(
            "text,label\ngood w1,fine\npoor w2,poor\n" if task == "mood" else "text,label\na,up\n"
        )
    run = osrm("collect", "--data", "other", "--split-dev", "0.1", "--out", "f", cwd=work)
    assert "task 'mood' in other has a dev split of its own, --split-dev 0.1 would take another of train" in run.error
    assert not (work / "f").exists()
    run = osrm("eval", "merged", "--data", "other", "--task", "mood", "--out", "other.json", cwd=work)
    assert recorded(work / "other.json")["tasks"]["mood"]["examples"] == 2
    run = osrm("collect", "--data", "mini", "--split-dev", "0.1", "--out", "f", cwd=work)
    assert "in mini has a dev split of its own" in run.error


def test_task_toml_says_the_same_or_contradicts(work: Path) -> None:
    (work / "own/mood/task.toml").write_text("split_dev = 0.25\n")
    assert osrm("eval", "merged", "--out", "x.json", cwd=work).code == 0
    (work / "own/mood/task.toml").write_text("split_dev = 0.2\n")
    run = osrm("eval", "merged", "--out", "y.json", cwd=work)
    assert run.error == "--split-dev is 0.25, own/mood/task.toml says split_dev = 0.2"


@pytest.mark.parametrize("share", ["0", "1", "-1", "nan", "1.5"])
def test_a_share_is_between_none_and_all(work: Path, share: str) -> None:
    run = osrm("collect", "--data", "own", "--split-dev", share, "--out", "f", cwd=work)
    assert run.error.startswith("--split-dev is ")
    assert run.error.endswith("expected a number between 0 and 1")


def test_two_shares_in_one_command(work: Path) -> None:
    run = osrm("collect", "--data", "own?split-dev=0.25", "--split-dev", "0.5", "--out", "f", cwd=work)
    assert run.error == "--data says split-dev=0.25, --split-dev 0.5"


def test_a_share_of_data_that_are_not_recorded(work: Path) -> None:
    record = recorded(work / "starts/mood/osrm.json")
    (work / "starts/mood/osrm.json").write_text(json.dumps({**record, "data": None}))
    run = osrm("train", "starts/mood", "--split-dev", "0.5", "--out", "more", cwd=work)
    assert run.error == "starts/mood does not record its data, of which --split-dev takes a share"
