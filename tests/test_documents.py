"""The documents: every command in them exists and runs, what is generated is the program's, and the site builds."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from osrm_cli.cli.app import app
from scripts import reference
from tests.run_cli import ROOT, osrm

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GUIDES = sorted((DOCS / "guides").glob("*.md"))
MARKS = ("<!-- modules: rewritten by pytest tests/test_documents.py --regen -->\n", "<!-- end -->")


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


def _documented() -> list[list[str]]:
    """Every command line of the documents: in code blocks and between backticks."""
    found = []
    for page in PAGES:
        lines = re.findall(r"^\s*(?:\$ )?(osrm .*)$", _text(page), re.M) + re.findall(r"`(osrm [^`]*)`", _text(page))
        found += [shlex.split(line.partition(" #")[0]) for line in lines if not line.startswith("osrm COMMAND")]
    return found


def _blocks(page: Path, kinds: str) -> list[tuple[str, str]]:
    """Code blocks of a page, as kind and text."""
    return re.findall(rf"^```({kinds})\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def _commands() -> dict[str, set[str]]:
    from typer.main import get_command

    group = get_command(app)
    return {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in group.commands.items()}


def test_every_documented_command_line_exists() -> None:
    commands = _commands()
    assert len(_documented()) > 100
    for words in _documented():
        options = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
        if words[1].startswith("-"):
            continue
        assert words[1] in commands, words
        assert set(options) - {"--help"} <= commands[words[1]], words


def test_every_command_has_a_guide_that_shows_it() -> None:
    for name in _commands():
        lines = [line for _, block in _blocks(DOCS / f"guides/{name}.md", "sh") for line in block.splitlines()]
        assert any(line.startswith(f"osrm {name}") for line in lines), name


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_pages_show_the_five_commands_in_order(page: str) -> None:
    blocks = [block for kind, block in _blocks(ROOT / page, "sh")]
    assert any(
        [line.split()[1] for line in block.splitlines()] == ["collect", "init", "train", "merge", "eval"]
        for block in blocks
        if block.startswith("osrm")
    )


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000


def test_set_up_commands_are_one_line_each() -> None:
    lines = [line for line in _text(ROOT / "README.md").splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("osrm demo")
    assert lines[1].endswith("pytest -n auto")


def test_every_option_is_explained() -> None:
    from typer.main import get_command

    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"osrm {name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", reference.PAGES)
def test_reference_is_the_program_s(name: str, request: pytest.FixtureRequest) -> None:
    text = reference.PAGES[name]()
    if request.config.getoption("--regen"):
        (DOCS / name).write_text(text, encoding="utf-8")
    assert (DOCS / name).read_text(encoding="utf-8") == text


def test_a_public_function_is_documented_from_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    import osrm_cli
    from osrm_cli.evaluation.evaluate import evaluate_folder

    monkeypatch.setattr(osrm_cli, "__all__", ["evaluate_folder"], raising=False)
    monkeypatch.setattr(osrm_cli, "evaluate_folder", evaluate_folder, raising=False)
    page = reference.python_api()
    assert "## evaluate_folder\n\n```python\nevaluate_folder(\n    folder: Path | str = 'merged',\n" in page
    assert ") -> EvaluationResult\n```" in page
    assert "- `split`: Split to score on." in page
    assert "**Attributes of the EvaluationResult returned**\n\n- `path`: " in page
    assert "```python\n>>> from osrm_cli import evaluate_folder\n" in page


def test_the_list_of_files_is_the_package_s(request: pytest.FixtureRequest) -> None:
    path = DOCS / "development/architecture.md"
    before, mark, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    assert mark
    assert end
    whole = f"{before}{mark}\n{reference.modules()}\n\n{end}{after}"
    if request.config.getoption("--regen"):
        path.write_text(whole, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == whole


def test_pictures_are_small_and_need_no_other_host() -> None:
    for path in (DOCS / "pictures").iterdir():
        assert path.stat().st_size < 200_000, path
        assert 'href="http' not in path.read_text(encoding="utf-8"), path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    pytest.importorskip("material", reason="the extra 'docs' is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_fetches_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?(https?://[^\s\">]+)", page.read_text("utf-8"))
        fetched += re.findall(r"<link[^>]* href=\"?(https?://[^\s\">]+)", page.read_text("utf-8"))
        assert not fetched, page


def test_equations_are_drawn_without_scripts(site: Path) -> None:
    text = (site / "concepts/index.html").read_text("utf-8")
    assert text.count("<math") > 20
    assert "arithmatex" not in text
    assert "\\frac" not in text


def test_cells_of_tables_keep_a_width_that_can_be_read(site: Path) -> None:
    text = (site / "reference/methods/index.html").read_text("utf-8")
    assert '<td class="short"><code>ties</code></td>' in text
    assert '<td class="long">mean, drawn to the base model' in text


def test_files_outside_the_documents_are_on_the_site(site: Path) -> None:
    assert (site / "studies/glue-minilm/index.html").is_file()
    assert 'href="../studies/glue-minilm/"' in (site / "results/index.html").read_text("utf-8")


def test_the_example_of_a_method_works() -> None:
    import torch

    from osrm_cli.linalg.low_rank import LowRank
    from osrm_cli.merging.methods.layer_updates import LayerUpdates
    from osrm_cli.merging.methods.method import Method
    from osrm_cli.merging.methods.options import MethodOptions

    names = {"LowRank": LowRank, "LayerUpdates": LayerUpdates, "MethodOptions": MethodOptions, "Method": Method}
    function, row = (block for _, block in _blocks(DOCS / "development/add-a-method.md", "python"))
    exec(function, names)
    small, large = (LowRank(torch.full((3, 1), size), torch.ones(1, 4)) for size in (1.0, 2.0))
    layer = LayerUpdates("layer", ("a", "b"), (small, large), (1.0, 1.0))
    torch.testing.assert_close(names["largest"](layer, MethodOptions(scale=0.5)).dense(), torch.ones(3, 4))
    method = eval(row, names)
    assert method.name == "largest"
    assert method.exact


# GLUE's names, columns and labels, so that the commands of the guides run as they stand.
GLUE_ROWS: dict[str, Callable[[int], dict[str, object]]] = {
    "sst2": lambda i: {"sentence": f"w{i % 50} {('bad', 'good')[i % 2]}", "label": i % 2},
    "mrpc": lambda i: {"sentence1": f"w{i % 40} w3", "sentence2": f"w{i % 40} w{3 + i % 2}", "label": 1 - i % 2},
    "stsb": lambda i: {"sentence1": f"w{i % 30} w5", "sentence2": f"w{i % 30} w{5 + i % 5}", "score": 5.0 - i % 5},
}


@pytest.fixture(scope="module")
def pipeline(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands have run: what every guide begins with."""
    folder = tmp_path_factory.mktemp("pipeline")
    for task, row in GLUE_ROWS.items():
        for split, size in {"train": 150, "dev": 40}.items():
            path = folder / "data" / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(size)))
    (folder / "osrm.toml").write_text(f'model = "{tiny_model("bert")}"\ndata = "data"\nquiet = true\n')
    first = "collect --statistic mean --statistic second-moment --statistic sketch:8 --statistic gradient"
    for command in (first, "init --each --rank 2", "train starts/*", "merge adapters/*", "eval merged"):
        _run(command, folder)
    return folder


def _run(command: str, folder: Path) -> None:
    """Run a command line as a shell would; what is there already is replaced."""
    words = shlex.split(command, comments=True)
    expanded = [each for word in words for each in _expand(word, folder)]
    replaces = [] if words[0] == "verify" else ["--overwrite"]
    run = osrm(*expanded, *replaces, cwd=folder)
    assert run.code == 0, (command, run)


def _expand(word: str, folder: Path) -> list[str]:
    found = sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else []
    return found or [word]


@pytest.mark.slow
def test_the_commands_on_text_tasks_run(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    for task, source in (("wikisql", "same"), ("snips", "backwards")):
        shutil.copytree(completion_tasks / source, tmp_path / "tasks" / task)
    for _, block in _blocks(DOCS / "guides/text-tasks.md", "sh"):
        for line in block.splitlines():
            _run(line.removeprefix("osrm ").replace("smollm2", str(tiny_writer("llama"))), tmp_path)
    assert (tmp_path / "merged" / "scores.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", [page for page in GUIDES if page.stem not in ("demo", "text-tasks")], ids=lambda page: page.stem
)
def test_the_commands_of_a_guide_run(guide: Path, pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline, tmp_path / "work"))
    base = tomllib.loads((folder / "osrm.toml").read_text())["model"]
    for _, block in _blocks(guide, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("osrm "):
                _run(line.removeprefix("osrm ").replace("extract minilm", f"extract {base}"), folder)


def _program(folder: Path) -> dict[str, str]:
    """The environment of a shell in which ``osrm`` is this checkout's program, and python this interpreter."""
    folder.mkdir()
    for name, words in {"osrm": "-m osrm_cli", "python": ""}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_tutorial_runs(minilm: str, tmp_path: Path) -> None:
    """Block by block, in an empty folder: shell commands as they stand, Python in a file."""
    env = _program(tmp_path / "bin")
    folder = tmp_path / "work"
    folder.mkdir()
    for kind, block in _blocks(DOCS / "tutorial.md", "sh|python"):
        named = re.match(r"# (\w+\.py)\n", block)
        if named:  # a file that the reader is told to save
            (folder / named[1]).write_text(block)
            continue
        words = ["bash", "-euo", "pipefail", "-c", block] if kind == "sh" else ["python", "-c", block]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert (folder / "report/report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["starts/sst2/osrm.json", "adapters/sst2/training.json", "merged/osrm.json", "merged/scores.json"],
)
def test_the_keys_of_a_file_are_documented(pipeline: Path, name: str) -> None:
    words = set(re.findall(r"[\w-]+", (DOCS / "reference/file-formats.md").read_text(encoding="utf-8")))
    assert set(json.loads((pipeline / name).read_text())) <= words
