"""One small project, made once: each test works in a copy of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.osrm import osrm


@pytest.fixture(scope="session")
def project(tiny: Callable[[str], Path], words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, starts, adapters and a merged folder of three tasks on a tiny BERT; never written to by a test."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "osrm.toml").write_text(f'model = "{tiny("bert")}"\ndata = "{words}"\nquiet = true\n')
    for command in (
        "collect --samples 20 --statistic mean --statistic second-moment --statistic samples",
        "init --each --rank 2",
        "train starts/mood starts/pair starts/score --epochs 1 --lr 0.01",
        "merge adapters/mood adapters/pair adapters/score --lambda 0.5",
    ):
        run = osrm(*command.split(), cwd=folder)
        assert run.code == 0, (command, run)
    return folder


@pytest.fixture
def work(project: Path, tmp_path: Path) -> Path:
    """A copy of the project, to do with as one likes."""
    return Path(shutil.copytree(project, tmp_path / "work"))


def listing(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
