"""The project itself: layering, start-up, completions, and documents that cannot go stale."""

import ast
import functools
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import osrm_cli
from tests.run_cli import ROOT

PACKAGE = ROOT / "osrm_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Which of the others' rooms, or modules of them, the room of a command imports: training and merging not each other,
# retrofit and diagnosis none of the two, reporting the tables and the one schema of scores.
COMMANDS = {
    "features": (),
    "initialization": ("features",),
    "training": ("features",),
    "extraction": (),
    "merging": ("features",),
    "evaluation": ("merging",),
    "calibration": ("merging", "evaluation"),
    "sweep": ("merging", "evaluation", "calibration"),
    "retrofit": ("features", "initialization"),
    "conversion": (),
    "diagnosis": ("features", "initialization", "evaluation.score_files"),
    "verification": (),
    "reporting": (
        *("initialization.objectives.table", "merging.methods"),
        *("evaluation.scores", "evaluation.score_files"),
    ),
}
# A room imports only itself and rooms that stand before it.
ORDER = (
    *("version", "errors", "progress", "seeding", "storage", "linalg", "plotting", "tasks", "adapters", "models"),
    *COMMANDS,
    "cli",
)
# Tables that the commands list and complete from.
TABLES = (
    *("features.statistics.table", "initialization.objectives.table", "adapters.formats.table"),
    *("merging.methods", "merging.methods.table", "merging.methods.method"),
)
# What commands import beside the public functions: what they list, complete and have as defaults; what reads an option
# or tells which process speaks; what prints a result, and its type. ``demo`` runs the other commands.
FOR_COMMANDS = {
    "adapters.formats.table": {"FORMATS"},
    "calibration.calibrate": {"DEFAULT_SAMPLES"},
    "evaluation.scores": {"average"},
    "extraction.extract": {"ExtractedAdapter"},
    "features.memory": {"DEFAULT_MEMORY", "format_memory_size"},
    "features.statistics.table": {"STATISTICS"},
    "initialization.objectives.table": {"DEFAULT_OBJECTIVES", "OBJECTIVES", "Objective"},
    "merging.methods": {"METHODS"},
    "merging.requirements": {"OPTIONS"},
    "models.distributed": {"process_rank"},
    "retrofit.retrofit": {"RetrofittedAdapters"},
    "storage.atomic": {"refuse_existing"},
    "sweep.grid": {"Value", "parse_grid_option", "parse_grid_values"},
    "sweep.results": {"SweepResult"},
    "tasks.description": {"format_task_description"},
    "verification.verify": {"DIFFERS", "Verification"},
}
# Rooms of pure mathematics: no files, no printing, no transformers.
PURE = ("linalg", "merging/methods", "initialization/objectives", "features/statistics", "calibration/ridge_map.py")
HEAVY = {"torch", "transformers", "peft", "datasets", "safetensors", "sklearn", "scipy", "numpy", "matplotlib"}
COMPLETIONS = {"bash": "osrm.bash", "zsh": "_osrm", "fish": "osrm.fish"}


def _room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _module_name(module: Path) -> str:
    """``room.module``; of a package's ``__init__``, the package's name; of the whole package's, nothing."""
    return ".".join(module.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


NAMES = {_module_name(module) for module in MODULES}


@functools.cache
def _imported_names(module: Path) -> set[tuple[str, str]]:
    """What a module imports of this package, in functions and for types too: a module's name, and a name in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            paths = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for path, name in paths:
            root, _, here = path.partition(".")
            inner = f"{here}.{name}".strip(".")
            if root == "osrm_cli":
                found.add((inner, "") if inner in NAMES else (here, name))
    return found


def _imports(module: Path) -> set[str]:
    """Modules of this package that a module imports."""
    return {name for name, _ in _imported_names(module)}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(module: Path) -> None:
    here = _room(module)
    if here in ("__init__", "__main__"):
        return
    for name in _imports(module):
        assert ORDER.index(name.split(".")[0]) <= ORDER.index(here), f"{module.relative_to(PACKAGE)} imports {name}"


def test_no_module_imports_itself_by_any_way_round() -> None:
    """The package's ``__init__`` imports the public functions, and so no module imports it."""
    graph = {_module_name(module): _imports(module) for module in MODULES}
    assert set().union(*graph.values()) <= NAMES
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_loader_may_run_a_checkpoint_s_code(module: Path) -> None:
    for call in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", None) in ("from_pretrained", "from_config"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("trust_remote_code") == "False", f"{module}:{call.lineno}"


@pytest.mark.parametrize("module", [m for m in MODULES if str(m.relative_to(PACKAGE)).startswith(PURE)], ids=str)
def test_pure_rooms_import_only_mathematics(module: Path) -> None:
    own = _room(module)
    for name in _imports(module):
        assert name.split(".")[0] in ("errors", "seeding", "linalg", own), f"{module} imports {name}"
    outside = {"transformers", "peft", "datasets", "safetensors", "pathlib", "rich", "typer", "json"}
    code = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    names = {n.module for n in code if isinstance(n, ast.ImportFrom) and n.module}
    assert not outside & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", COMMANDS)
def test_what_rooms_of_commands_import_of_each_other(room: str) -> None:
    for module in (PACKAGE / room).rglob("*.py"):
        for name in _imports(module):
            if name.split(".")[0] in COMMANDS.keys() - {room}:
                assert any(f"{name}.".startswith(f"{each}.") for each in COMMANDS[room]), f"{module} imports {name}"


@pytest.mark.parametrize("table", TABLES)
def test_tables_import_nothing_heavy(table: str) -> None:
    loaded = _fresh(f"import sys; import osrm_cli.{table}; print(*sys.modules)").split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("module", sorted((PACKAGE / "cli" / "commands").glob("*.py")), ids=lambda path: path.stem)
def test_no_command_imports_another(module: Path) -> None:
    others = {name.split(".")[1] for name in _imports(module) if name.startswith("cli.")}
    assert others <= {"options", "console", "config_file"}


def test_commands_call_public_functions_alone() -> None:
    public = {(module, name) for name, module in osrm_cli._MODULES.items()}
    beside = {(module, name) for module, names in FOR_COMMANDS.items() for name in names}
    imported = {
        module.stem: {found for found in _imported_names(module) if not found[0].startswith("cli.")}
        for module in (PACKAGE / "cli" / "commands").glob("[!_]*.py")
    }
    assert set().union(*imported.values()) - public == beside  # none is listed in vain
    assert [name for name, found in imported.items() if not found & public - {("errors", "OsrmError")}] == ["demo"]


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
