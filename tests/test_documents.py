"""What is generated in the documents, their first pages, and their site; ``tests/documents`` runs their commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from osrm_cli.cli.app import app
from scripts import reference
from tests.run_cli import ROOT

DOCS = ROOT / "docs"
MARKS = ("<!-- modules: rewritten by pytest tests/test_documents.py --regen -->\n", "<!-- end -->")


def _blocks(page: Path, kinds: str) -> list[tuple[str, str]]:
    """Code blocks of a page, as kind and text."""
    return re.findall(rf"^```({kinds})\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def test_every_command_has_a_guide_that_shows_it() -> None:
    for name in (command.name for command in app.registered_commands):
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
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.startswith("python3 -m venv")]
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
