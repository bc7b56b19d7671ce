"""``--skip-long``: rows whose completion is too long are as if they were not there, and are counted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.run_cli import Run, osrm

TASKS = ("last", "same")
LONG = {"prompt": "w1 ", "completion": "w2 " * 40}
KEPT = {"train": 40, "dev": 12}


def run(folder: Path, *words: str) -> Run:
    """A command at 24 tokens; rows that are too long may be left out."""
    done = osrm(*words, "--max-length", "24", "--skip-long", cwd=folder)
    assert done.code == 0, done
    return done


def warnings_of(*splits: str) -> set[str]:
    """What is said of each task: one row of a split is too long, the last one."""
    counts = {(task, split): KEPT[split] for task in TASKS for split in splits}
    return {
        f"warning: left out 1 of {count + 1} examples whose completion exceeds 24 tokens, the first at "
        f"tasks/{task}/{split}.jsonl:{count + 1}"
        for (task, split), count in counts.items()
    }


@pytest.fixture(scope="module")
def projects(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Features, starts and adapters of data with rows that are too long, and of the same data without them."""
    folder = tmp_path_factory.mktemp("skip-long")
    for name in ("with", "without"):
        project = folder / name
        shutil.copytree(completion_tasks, project / "tasks")
        (project / "osrm.toml").write_text(f'model = "{tiny_writer("llama")}"\ndata = "tasks"\nquiet = true\n')
        for task in TASKS if name == "with" else ():
            for split in KEPT:
                with (project / "tasks" / task / f"{split}.jsonl").open("a") as file:
                    file.write(json.dumps(LONG) + "\n")
        collected = run(project, "collect", "--task", "last", "--task", "same")
        assert osrm("init", "--each", "--rank", "4", cwd=project).code == 0
        trained = run(project, "train", "starts/last", "starts/same", "--epochs", "1", "--lr", "0.01")
        if name == "with":
            assert set(collected.stderr.splitlines()) == warnings_of("train")
            assert set(trained.stderr.splitlines()) == warnings_of("train", "dev")
        else:
            assert collected.stderr + trained.stderr == ""
    return folder / "with", folder / "without"


def read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def test_collect_and_train(projects: tuple[Path, Path]) -> None:
    for name in ("features/{}.safetensors", "adapters/{}/adapter_model.safetensors"):
        for task in TASKS:
            ours, theirs = (load_file(project / name.format(task)) for project in projects)
            assert ours.keys() == theirs.keys()
            assert all(ours[key].equal(theirs[key]) for key in ours)


def test_eval(projects: tuple[Path, Path], tmp_path: Path) -> None:
    found = []
    for project in projects:
        out = tmp_path / f"{project.name}.json"
        done = run(project, "eval", "adapters/same", "--out", str(out))
        expected = {line for line in warnings_of("dev") if "/same/" in line}
        assert set(done.stderr.splitlines()) == (expected if project.name == "with" else set())
        found.append(json.loads(out.read_text()))
    ours, theirs = (scores["tasks"]["same"] for scores in found)
    assert ours["examples"] == 12
    assert ours["metrics"] == theirs["metrics"]
    assert found[0]["settings"]["skip_long"]


def test_sweep(projects: tuple[Path, Path], tmp_path: Path) -> None:
    found = []
    for project in projects:
        out = str(tmp_path / project.name)
        words = ("--lambda", "0.3,1", "--validation-split", "train", "--generate", "--out", out)
        done = run(project, "sweep", "adapters/last", "adapters/same", *words)
        expected = warnings_of("train", "dev") if project.name == "with" else set()
        assert set(done.stderr.splitlines()) == expected
        found.append(read(Path(out), "sweep.json"))
    ours, theirs = found
    assert ours["settings"]["skip_long"]
    assert ours["single"] == theirs["single"]
    for one, other in zip(ours["points"], theirs["points"], strict=True):
        for part, split in (("validation", "train"), ("test", "dev")):
            assert one[part] == other[part]
            assert {row["examples"] for row in one[part]["tasks"].values()} == {KEPT[split]}
    assert "exact_match" in ours["points"][ours["best"][0]["point"]]["test"]["tasks"]["same"]["metrics"]


@pytest.mark.parametrize("command", ["collect --task same", "eval adapters/same", "sweep adapters/same --lambda 1"])
def test_without_it_or_with_every_row_too_long(command: str, projects: tuple[Path, Path], tmp_path: Path) -> None:
    words = (*command.split(), "--out", str(tmp_path / "out"), "--max-length")
    assert (
        "the completion has 41 tokens, more than fit into --max-length 24" in osrm(*words, "24", cwd=projects[0]).error
    )
    assert "every completion exceeds 2 tokens" in osrm(*words, "2", "--skip-long", cwd=projects[0]).error
    assert not (tmp_path / "out").exists()
