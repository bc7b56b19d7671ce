"""The documents' commands of other programs: each line as it stands, with what it would cost left out.

``snakemake`` plans (``--dry-run``), ``pytest`` collects, ``pre-commit`` works in a repository of its own; the measuring
parts of campaign and benchmarks are replaced, and run for themselves in ``tests/campaign`` and ``test_benchmarks.py``.
"""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmarks import __main__ as benchmarks_main
from benchmarks import pages, report
from tests.campaign import __main__ as campaign
from tests.cluster.slurm import missing_programs
from tests.documents.commands import of_kind
from tests.run_cli import ROOT, process

PROGRAMS = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(line: str, folder: Path, code: int = 0) -> str:
    """Run a line with this interpreter and the programs beside it; what it has printed."""
    words = shlex.split(line)
    paths = {"PATH": (PROGRAMS, os.environ["PATH"]), "PYTHONPATH": (ROOT, os.environ.get("PYTHONPATH", ""))}
    done = subprocess.run(
        [sys.executable if words[0] == "python" else words[0], *words[1:]],
        cwd=folder,
        env={**os.environ, **{name: os.pathsep.join(map(str, parts)) for name, parts in paths.items()}},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("line", of_kind("snakemake"))
def test_a_study_is_planned(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files lie in a bucket, the plan ends with the question for its credentials."""
    pytest.importorskip("snakemake")
    for name in ("config", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in re.findall(r"--profile (\S+)", line):
        profile = yaml.safe_load((ROOT / name / "config.yaml").read_text())
        pytest.importorskip(f"snakemake_executor_plugin_{profile['executor']}")
        if storage := profile.get("default-storage-provider"):
            pytest.importorskip(f"snakemake_storage_plugin_{storage}")
            for variable in [name for name in os.environ if name.startswith(("AWS_", "SNAKEMAKE_"))]:
                monkeypatch.delenv(variable)
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            assert "NoCredentialsError" in run(f"{line} --dry-run", tmp_path, code=1)
            return
    plan = run(f"{line} --dry-run", tmp_path)
    targets = re.findall(r"results/\S+", line)
    rules = ("collect", "init", "train", "sweep") + (("report",) if not targets else ())
    assert [rule for rule in rules if f"rule {rule}:" not in plan] == []
    if targets:  # a seed of a row of the text study
        assert (plan.count("rule sweep:"), plan.count("rule train:")) == (1, 6)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in of_kind("script") if "pictures" not in line])
def test_a_script_runs(line: str, pipeline: Path, tmp_path: Path) -> None:
    if "trace_files" in line:
        line = line.replace("COMMAND ...", "verify merged").replace("scripts/", f"{ROOT}/scripts/")
        assert "verification/" in run(line, pipeline)
    else:
        assert run(line, ROOT).count("| --- |") > 0


def test_pictures_are_what_the_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = re.findall(r"^matplotlib==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    if pinned != [importlib.metadata.version("matplotlib")]:
        pytest.skip("another version of matplotlib draws other paths")
    import matplotlib

    from scripts import pictures

    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    with matplotlib.rc_context():
        pictures.main()
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (ROOT / "docs/pictures").iterdir()}


@pytest.mark.parametrize("line", of_kind("campaign"))
def test_a_campaign_begins(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    for name in ("import_everything", "build_project", "warm_up"):
        monkeypatch.setattr(campaign, name, lambda *_: None)
    monkeypatch.setattr(campaign, "_run", lambda part, count, *_: asked.append((part, count)) or [])
    words = line.replace("/tmp/campaign", str(tmp_path)).split()[2:]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        campaign.main()
    assert ended.value.code == 0
    given = re.match(rf"{words[1]}(?: (\d+))?", " ".join(words[1:]))
    assert given
    if words[1] != "short":
        assert asked == [(words[1], int(given[1] or 50))]


@pytest.mark.parametrize("line", of_kind("benchmarks"))
def test_benchmarks_begin(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every benchmark is imported; none is measured."""
    if line.endswith(".pages"):  # what it writes is compared in tests/test_benchmarks.py
        monkeypatch.setattr(Path, "write_text", lambda *_, **__: None)
        return pages.write()
    names: list[str] = []
    monkeypatch.setattr(report, "run", lambda name, *_: names.append(name))
    monkeypatch.setattr(pages, "write", lambda: names.append("pages"))
    monkeypatch.setattr(sys, "argv", line.split()[2:])
    benchmarks_main.main()
    only = re.findall(r"--only (\S+)", line)
    assert names == [*(only or pages.SCRIPTS), "pages"]
    return None


@pytest.mark.parametrize("line", of_kind("cluster"))
def test_a_command_runs_beside_a_cluster(line: str) -> None:
    if missing := missing_programs():
        pytest.skip(f"Slurm is not installed: no {missing[0]}")
    if os.geteuid():
        pytest.skip("Slurm's daemons need root")
    with tempfile.TemporaryDirectory() as folder:  # its sockets have short names
        assert "main" in run(line.replace("/tmp/cluster", f"{folder}/cluster"), ROOT)


@pytest.mark.parametrize("line", of_kind("pip"))
def test_what_is_installed_is_there(line: str) -> None:
    """Extras are the package's; other packages are its dependencies, a profile's plugins, or installed here."""
    words = shlex.split(line)[2:]
    for option in ("-c", "--constraint"):
        if option in words:
            assert (ROOT / words.pop(words.index(option) + 1)).is_file()
    extras = PROJECT["optional-dependencies"]
    profile = yaml.safe_load((ROOT / "workflow/profiles/kubernetes/config.yaml").read_text())
    known = {
        f"snakemake-executor-plugin-{profile['executor']}",
        f"snakemake-storage-plugin-{profile['default-storage-provider']}",
        *(re.split(r"[^\w-]", need)[0] for needs in extras.values() for need in needs),
    }
    for word in words:
        own = re.fullmatch(r"(?:\.|osrm-cli)\[(.+)\]", word)
        if own:
            assert set(own[1].split(",")) <= extras.keys()
        elif not word.startswith("-") and word not in known:
            try:
                importlib.metadata.version(word)
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"{word} is not installed, and nothing here needs it")


@pytest.mark.parametrize("line", of_kind("environment"))
def test_an_environment_is_made(line: str, tmp_path: Path) -> None:
    run(f"{line} --without-pip", tmp_path)
    assert (tmp_path / ".venv/bin/python").exists()


@pytest.mark.parametrize("line", of_kind("packages"))
def test_system_packages_are_those_of_the_hosted_run(line: str) -> None:
    assert line.removeprefix("apt-get install ") in (ROOT / ".github/workflows/ci.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted({line.removesuffix(" --regen") for line in of_kind("pytest")}))
def test_tests_are_collected(line: str) -> None:
    """Of all tests, which a line without a path means, and of a folder's one file stands for them."""
    words = shlex.split(line)
    paths = [word for word in words if word.startswith("tests/")] or ["tests"]
    files = [next(iter(sorted((ROOT / path).glob("test_*.py"))), ROOT / path) for path in paths]
    words = [word for word in words if word not in paths]
    run(shlex.join(["python", "-m", *words, *map(str, files), "--collect-only", "-q"]), ROOT)


@pytest.mark.parametrize("line", of_kind("checks"))
def test_checks_are_those_that_have_to_pass(line: str, tmp_path: Path) -> None:
    program, *words = line.split()
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    if program == "pre-commit":
        pytest.importorskip("pre_commit")
        shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
        run("git init -q", tmp_path)
        run(f"python -m pre_commit {' '.join(words)}", tmp_path)
        kinds = re.findall(r"--hook-type (\S+)", line)
        assert [kind for kind in kinds if not (tmp_path / ".git/hooks" / kind).is_file()] == []
    elif program == ".ci/run":
        run("bash -n .ci/run", ROOT)
        assert os.access(ROOT / program, os.X_OK)
    else:
        strict = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["strict"]
        assert line.removesuffix(" --strict" * strict) in script


@pytest.mark.parametrize("line", of_kind("site"))
def test_the_site_s_settings_are_read(line: str) -> None:
    """The site itself is built in ``tests/test_documents.py``."""
    pytest.importorskip("material", reason="the extra 'docs' is not installed")
    from mkdocs.commands import serve
    from mkdocs.config import load_config

    assert callable(getattr(serve, line.removeprefix("mkdocs ")))
    assert load_config(str(ROOT / "mkdocs.yml"))["site_name"]


@pytest.mark.parametrize("line", of_kind("commit"))
def test_a_commit_is_in_the_history(line: str) -> None:
    if not (ROOT / ".git").exists() or run("git rev-parse --is-shallow-repository", ROOT).strip() == "true":
        pytest.skip("the history is not here")
    run(line.replace("checkout", "cat-file -e"), ROOT)


@pytest.mark.parametrize("line", of_kind("launcher"))
def test_a_launcher_takes_its_options(line: str) -> None:
    """``tests/cli/test_train.py`` and ``test_collect_shards.py`` train and collect by these launchers."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed import run as torchrun

    from osrm_cli.cli.app import app

    program, *words = line.split()
    if not words[1:]:
        return
    parsed = torchrun.parse_args(words) if program == "torchrun" else launch_command_parser().parse_args(words[1:])
    assert (parsed.module, parsed.training_script) == (True, "osrm_cli")
    assert parsed.training_script_args[0] in {command.name for command in app.registered_commands}


@pytest.mark.parametrize("line", of_kind("module"))
def test_the_module_is_the_program(line: str, tmp_path: Path) -> None:
    assert line == "python -m osrm_cli"
    assert process("--version", cwd=tmp_path).code == 0


def test_folders_are_there() -> None:
    assert [line for line in of_kind("folder") if not (ROOT / line.removeprefix("cd ")).is_dir()] == []
