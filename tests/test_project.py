"""The project itself: layering, start-up, completions, and documents that cannot go stale."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from osrm_cli.cli.app import app
from tests.run_cli import ROOT

PACKAGE = ROOT / "osrm_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room imports only itself and rooms that stand before it.
ORDER = (
    *("errors", "progress", "seeding", "storage", "linalg", "plotting", "tasks", "adapters", "models"),
    *("features", "initialization", "training", "merging", "evaluation", "calibration", "sweep"),
    *("retrofit", "diagnosis", "reporting", "cli"),
)
# Rooms of pure mathematics: no files, no printing, no transformers.
PURE = ("linalg", "merging/methods", "initialization/objectives", "features/statistics", "calibration/ridge_map.py")
HEAVY = {"torch", "transformers", "peft", "datasets", "safetensors", "sklearn", "scipy", "numpy", "matplotlib"}
COMPLETIONS = {"bash": "osrm.bash", "zsh": "_osrm", "fish": "osrm.fish"}


def _room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(module: Path) -> set[str]:
    """Modules of this package that a module imports, wherever in the file, as ``room.module``."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.partition(".")[2] for name in names if name.split(".")[0] == "osrm_cli"}
    return found - {"__version__"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(module: Path) -> None:
    here = _room(module)
    if here in ("__init__", "__main__"):
        return
    for name in _imports(module):
        assert ORDER.index(name.split(".")[0]) <= ORDER.index(here), f"{module.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if str(m.relative_to(PACKAGE)).startswith(PURE)], ids=str)
def test_pure_rooms_import_only_mathematics(module: Path) -> None:
    own = _room(module)
    for name in _imports(module):
        assert name.split(".")[0] in ("errors", "seeding", "linalg", own), f"{module} imports {name}"
    outside = {"transformers", "peft", "datasets", "safetensors", "pathlib", "rich", "typer", "json"}
    code = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    names = {n.module for n in code if isinstance(n, ast.ImportFrom) and n.module}
    assert not outside & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("pair", [("training", "merging"), ("merging", "training"), ("retrofit", "training")], ids=str)
def test_rooms_beside_each_other(pair: tuple[str, str]) -> None:
    here, other = pair
    for module in (PACKAGE / here).rglob("*.py"):
        assert other not in {name.split(".")[0] for name in _imports(module)}, module


@pytest.mark.parametrize("module", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_no_command_imports_another(module: Path) -> None:
    others = {name.split(".")[1] for name in _imports(module) if name.startswith("cli.")}
    assert module.stem in ("app", "__init__") or others <= {"options", "console", "config_file"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_too_long(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in MODULES}:
        assert len(list(folder.glob("*.py"))) <= 16, folder


def _fresh(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_start_up_imports_nothing_heavy() -> None:
    code = (
        "import sys; from osrm_cli.cli.app import app; from typer.testing import CliRunner as R; "
        "R().invoke(app, ['--help']); R().invoke(app, ['merge', '--help']); print(*sorted(sys.modules))"
    )
    assert not HEAVY & {name.split(".")[0] for name in _fresh(code).split()}


def test_completing_a_method_imports_nothing_heavy() -> None:
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules)); from osrm_cli.cli.app import main; main()"
    words = {"_OSRM_COMPLETE": "complete_bash", "COMP_WORDS": "osrm merge --method t", "COMP_CWORD": "3"}
    found = _fresh(code, **words).split()
    assert {"ties", "task-arith", "tsv"} <= set(found)
    assert not (HEAVY | {"pydantic"}) & {name.split(".")[0] for name in found}


@pytest.mark.slow
def test_collecting_imports_no_scikit_learn() -> None:
    code = (
        "import sys; from osrm_cli.features import collect; from osrm_cli.tasks.loading import load_split; "
        "load_split('mini-mood', 'mini', 'train', 1); print(*sys.modules)"
    )
    assert not {"sklearn", "pandas", "datasets"} & set(_fresh(code).split())


@pytest.mark.parametrize(("shell", "name"), COMPLETIONS.items())
def test_completions_are_the_program_s(shell: str, name: str, request: pytest.FixtureRequest) -> None:
    script = _fresh("from osrm_cli.cli.app import main; main()", _OSRM_COMPLETE=f"source_{shell}").strip() + "\n"
    path = ROOT / "completions" / name
    if request.config.getoption("--regen"):
        path.write_text(script, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == script


def _commands() -> dict[str, set[str]]:
    from typer.main import get_command

    group = get_command(app)
    return {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in group.commands.items()}


def _documented() -> list[list[str]]:
    """Every command line of the documents: in code blocks and between backticks."""
    found = []
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^\s*(?:\$ )?(osrm .*)$", text, re.M) + re.findall(r"`(osrm [^`]*)`", text)
        found += [shlex.split(line.partition(" #")[0]) for line in lines]
    return found


def test_every_documented_command_line_exists() -> None:
    commands = _commands()
    assert len(_documented()) > 10
    for words in _documented():
        options = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
        if words[1].startswith("-"):
            continue
        assert words[1] in commands, words
        assert set(options) - {"--help"} <= commands[words[1]], words


def test_every_command_is_documented() -> None:
    assert {words[1] for words in _documented()} >= set(_commands())


def test_every_method_and_objective_is_documented() -> None:
    from osrm_cli.initialization.objectives.table import OBJECTIVES
    from osrm_cli.merging.methods import METHODS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in (*METHODS, *OBJECTIVES):
        assert f"`{row.name}`" in readme, row.name


def test_method_table_is_the_program_s(request: pytest.FixtureRequest) -> None:
    from osrm_cli.merging.methods import METHODS

    rows = ["| method | needs | result | what it does |", "| --- | --- | --- | --- |"]
    for row in METHODS:
        source = f" ([{row.source}](https://arxiv.org/abs/{row.source}))" if row.source else ""
        rows.append(f"| `{row.name}` | {', '.join(row.needs)} | {row.result} | {row.summary}{source} |")
    path = ROOT / "README.md"
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- methods: rewritten by pytest --regen -->\n")
    _, end, after = rest.partition("<!-- end -->")
    whole = before + mark + "\n".join(rows) + "\n" + end + after
    if request.config.getoption("--regen"):
        path.write_text(whole, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == whole


def test_every_option_is_explained() -> None:
    from typer.main import get_command

    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"osrm {name}: {parameter.name} has no help"


def test_set_up_commands_are_one_line_each() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("osrm demo")
    assert lines[1].endswith("pytest -n auto")
