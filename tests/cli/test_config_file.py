"""Flag > OSRM_* variable > osrm.toml > built-in default."""

import json
from pathlib import Path

import pytest

from osrm_cli.cli.config_file import read_option_defaults
from osrm_cli.errors import OsrmError
from tests.run_cli import osrm

SPELLINGS = {"train": {"lr": "lr", "max-length": "max_length"}, "eval": {"split": "split", "max-length": "max_length"}}


def seed_of(folder: Path, *more: object, env: dict[str, str] | None = None) -> int:
    run = osrm("init", "--exclude", "mood", "--out", "new", "--overwrite", *more, cwd=folder, env=env)
    assert run.code == 0, run
    return int(json.loads((folder / "new/mood/osrm.json").read_text())["settings"]["seed"])


def test_order(project_copy: Path) -> None:
    assert seed_of(project_copy) == 0
    (project_copy / "osrm.toml").write_text("seed = 5\n[train]\nseed = 9\n")
    assert seed_of(project_copy) == 5
    (project_copy / "osrm.toml").write_text("seed = 5\n[init]\nseed = 6\n")
    assert seed_of(project_copy) == 6
    assert seed_of(project_copy, env={"OSRM_SEED": "7"}) == 7
    assert seed_of(project_copy, "--seed", 8, env={"OSRM_SEED": "7"}) == 8


def test_lists_and_switches(project_copy: Path) -> None:
    (project_copy / "osrm.toml").write_text(
        (project_copy / "osrm.toml").read_text()
        + '[collect]\ntask = ["mood", "pair"]\nstatistic = ["mean"]\nout = "new"\njson = true\n'
    )
    run = osrm("collect", cwd=project_copy)
    assert set(json.loads(run.stdout)["features"]) == {"mood", "pair"}
    run = osrm("collect", "--task", "score", cwd=project_copy)
    assert set(json.loads(run.stdout)["features"]) == {"score"}


@pytest.mark.parametrize("command", ["collect", "init", "train", "merge", "eval"])
def test_unknown_key_stops_every_command(tmp_path: Path, command: str) -> None:
    (tmp_path / "osrm.toml").write_text("rnak = 4\n")
    run = osrm(command, "x", cwd=tmp_path)
    assert run.code == 1
    assert run.error == "osrm.toml: 'rnak' is not an option of any command"
    assert "did you mean 'rank'?" in run.stderr


def test_option_of_another_command(tmp_path: Path) -> None:
    (tmp_path / "osrm.toml").write_text("[init]\nepochs = 4\n")
    assert osrm("init", "--each", cwd=tmp_path).error == "osrm.toml: 'epochs' is not an option of osrm init"
    (tmp_path / "osrm.toml").write_text("[intit]\nrank = 4\n")
    assert osrm("init", "--each", cwd=tmp_path).error == "osrm.toml: [intit] is not a command"


def test_value_of_another_kind_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "osrm.toml").write_text('rank = "many"\n')
    run = osrm("init", "--each", cwd=tmp_path)
    assert run.code == 2
    assert "'--rank' / '-r'" in run.stderr


@pytest.mark.parametrize("content", [b"rank = ", b"\xff\xfe\x00", b"[[init", b"rank = " + b"[" * 10_000], ids=range(4))
def test_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "osrm.toml").write_bytes(content)
    run = osrm("init", "--each", cwd=tmp_path)
    assert run.code == 1
    assert run.error.startswith("osrm.toml: ")


def test_help_works_with_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "osrm.toml").write_text("rank = ")
    assert osrm("--help", cwd=tmp_path).code == 0


def test_tables_win_over_shared_keys(tmp_path: Path) -> None:
    path = tmp_path / "osrm.toml"
    assert read_option_defaults(SPELLINGS, path) == {}
    path.write_text("max-length = 9\n[eval]\nmax-length = 5\nsplit = 'test'\n")
    assert read_option_defaults(SPELLINGS, path) == {
        "train": {"max_length": 9},
        "eval": {"max_length": 5, "split": "test"},
    }
    path.write_text("split = 'test'\n")
    assert read_option_defaults(SPELLINGS, path) == {"train": {}, "eval": {"split": "test"}}
    path.write_text("[train]\nsplit = 'test'\n")
    with pytest.raises(OsrmError, match="'split' is not an option of osrm train"):
        read_option_defaults(SPELLINGS, path)
