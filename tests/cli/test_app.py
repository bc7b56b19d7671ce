import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from osrm_cli import __version__
from osrm_cli.cli import console
from osrm_cli.cli.app import app
from osrm_cli.errors import describe_system_error
from tests.run_cli import ROOT, osrm, process

COMMANDS = [command.name for command in app.registered_commands if command.name]


def test_commands_stand_in_the_order_of_the_work(tmp_path: Path) -> None:
    run = osrm("--help", cwd=tmp_path)
    assert run.code == 0
    found = [name for name in re.findall(r"^  (\w+) ", run.stdout.partition("Commands:")[2], re.M) if name in COMMANDS]
    assert found == COMMANDS
    order = "collect init train merge extract calibrate retrofit eval sweep diagnose report convert verify demo"
    assert found == order.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(tmp_path: Path, command: str) -> None:
    run = osrm(command, "--help", cwd=tmp_path)
    assert run.code == 0
    assert f"Example: osrm {command}" in run.stdout


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("osrm re", {"report", "retrofit"}),
        ("osrm collect --batch-size many --dtype b", {"bfloat16"}),
        ("osrm merge a b --density 0.5 --method ti", {"ties"}),
        ("osrm merge --nosuch a --lam", {"--lambda"}),
    ],
)
def test_a_tab_completes_whatever_stands_before_it(tmp_path: Path, typed: str, found: set[str]) -> None:
    env = {"_OSRM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    run = process(cwd=tmp_path, env=env)
    assert found <= set(run.stdout.split())


def test_version(tmp_path: Path) -> None:
    assert osrm("--version", cwd=tmp_path).stdout == f"osrm {__version__}\n"


@pytest.mark.parametrize("args", [["nosuch"], ["init", "--nosuch"], ["train"], ["eval", "--limit", "x"]], ids=" ".join)
def test_usage_is_2_on_stderr(tmp_path: Path, args: list[str]) -> None:
    run = osrm(*args, cwd=tmp_path)
    assert (run.code, run.stdout) == (2, "")
    assert "Usage: " in run.stderr


def test_user_error_is_1_without_a_traceback(tmp_path: Path) -> None:
    run = process("init", "--each", cwd=tmp_path)
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr == "error: features is missing\nhint: make it with 'osrm collect --task NAME'\n"


def test_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("osrm_cli.features.feature_set.FeatureSet.open", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        osrm("init", "--each", cwd=tmp_path)


def test_plugins_of_validation_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text("print('the plugin runs')\nplugin = None\n")
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pydantic]\nplug = plug:plugin\n")
    (tmp_path / "merge.yaml").write_text("method: ties\n")
    run = process("merge", "--recipe", "merge.yaml", cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    assert (run.code, run.stdout) == (1, "")
    assert "'adapters' is missing" in run.stderr


HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "safetensors", "sklearn", "matplotlib")


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_start_up_imports_nothing_heavy(tmp_path: Path, args: list[str]) -> None:
    code = (
        "import sys, osrm_cli.cli.app\n"
        f"try: osrm_cli.cli.app.app({args!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("speed", "text"), [(0, "0"), (0.4, "0.4"), (0.0432, "0.043"), (9.87, "9.9"), (12.3, "12"), (12345.6, "12,346")]
)
def test_rates(speed: float, text: str) -> None:
    assert console._format_console_rate(speed) == text


def test_help_shows_the_pipeline_a_step_a_line(tmp_path: Path) -> None:
    shown = osrm("--help", cwd=tmp_path).stdout
    assert "\\b" not in shown
    steps = [line.split()[0] for line in shown.splitlines() if " -> " in line]
    assert steps == ["collect", "init", "train", "merge", "eval"]


def test_summaries_of_commands_fit_a_terminal_of_80_columns(tmp_path: Path) -> None:
    summaries = (
        osrm("--help", cwd=tmp_path, env={"COLUMNS": "80"}).stdout.partition("Commands:")[2].strip().splitlines()
    )
    assert len(summaries) == len(COMMANDS)
    assert [line for line in summaries if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_output_has_its_usual_names(command: str) -> None:
    from typer.main import get_command

    parameters = get_command(app).commands[command].params
    outputs = [parameter.opts for parameter in parameters if "--out" in parameter.opts]
    assert outputs == ([] if command in ("convert", "verify") else [["--out", "-o", "--output"]])


def test_the_output_by_its_other_names(project_copy: Path) -> None:
    words = ("merge", "adapters/mood", "adapters/pair")
    assert osrm(*words, "-o", "a", cwd=project_copy).code == 0
    assert osrm(*words, "--output", "b", cwd=project_copy).code == 0
    settings = (project_copy / "osrm.toml").read_text()
    (project_copy / "osrm.toml").write_text(f'{settings}\n[merge]\noutput = "c"\n')
    assert osrm(*words, cwd=project_copy).code == 0
    assert all((project_copy / name / "osrm.json").is_file() for name in "abc")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "base"), "base: Permission denied"),
        (OSError(36, "File name too long", "base"), "base: File name too long"),
        (OSError(28, "No space left on device"), "a file cannot be written: No space left on device"),
        (RuntimeError("basic_ios::clear: iostream error"), "a checkpoint cannot be written: is the disk full?"),
        (OSError(5, "Input/output error"), None),
        (RuntimeError("a bug"), None),
    ],
    ids=str,
)
def test_trouble_with_files_is_one_line_and_a_bug_has_its_traceback(error: Exception, expected: str | None) -> None:
    assert describe_system_error(error) == expected


@pytest.mark.parametrize("size", [100, 5_000, 8_300, 13_098, 16_000])
def test_a_checkpoint_on_a_full_disk(tmp_path: Path, size: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises((RuntimeError, OSError)) as found:
            torch.save({"a": torch.ones(1000), "b": torch.ones(3000)}, tmp_path / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "cannot be written" in str(describe_system_error(found.value))
