"""The package's own functions: lazily imported, and each documented with an example that runs."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path, PosixPath

import pytest

import osrm_cli
from tests.run_cli import ROOT, osrm

FUNCTIONS = [name for name in osrm_cli.__all__ if name != "OsrmError"]


def test_every_name_is_there() -> None:
    for name in osrm_cli.__all__:
        assert callable(getattr(osrm_cli, name)), name
    assert set(osrm_cli.__all__) <= set(dir(osrm_cli))
    with pytest.raises(AttributeError, match="nosuch"):
        osrm_cli.nosuch  # noqa: B018 - looking it up is the test


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, osrm_cli; dir(osrm_cli); print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "typer", "pydantic", "numpy"} & set(names.split())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented(name: str) -> None:
    function = getattr(osrm_cli, name)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Raises:"):
        assert section in text, section
    assert f">>> from osrm_cli import {name}" in text


@pytest.mark.slow
def test_the_examples_run(minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the work, from an empty folder; figures may differ from those printed, their kind may not."""
    monkeypatch.chdir(tmp_path)
    for name in osrm_cli._MODULES:
        if name == "OsrmError":
            continue
        names: dict[str, object] = {}
        parts = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(osrm_cli, name)) or "")
        assert parts, name
        for example in parts:
            if not example.want:
                exec(example.source, names)
                continue
            value = eval(example.source, names)
            expected = eval(example.want, {"PosixPath": PosixPath})
            assert type(value) is type(expected), (name, value)
            assert not isinstance(expected, PosixPath) or (value == expected and value.exists())


def test_the_functions_do_what_the_commands_do(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass through all of them; the written files are the commands', byte by byte where both are given alike."""
    monkeypatch.chdir(project_copy)
    adapters = [f"adapters/{task}" for task in ("mood", "pair", "score")]
    merged = osrm_cli.merge_adapters(adapters, "task-arith", options={"lambda": 0.5}, out="merged-api")
    assert merged.summary["layers"] > 0
    for path in sorted(Path("merged").rglob("*.safetensors")):
        assert (Path("merged-api") / path.relative_to("merged")).read_bytes() == path.read_bytes()
    scores = osrm_cli.evaluate_folder("merged", out="scores-api.json").scores
    assert set(scores) == {"mood", "pair", "score"}
    assert osrm("eval", "merged", "--out", "scores-cli.json", cwd=project_copy).code == 0
    assert Path("scores-api.json").read_bytes() == Path("scores-cli.json").read_bytes()
    report = osrm_cli.run_sweep(adapters, ["task-arith"], {"lambda": [0.3, 0.5]}, out="sweep-api")
    assert report.points == 2
    assert osrm_cli.calibrate_folder("merged", samples=20, out="calibrated-api").rows.keys() == scores.keys()
    trained = osrm_cli.train_adapter("starts/mood", epochs=1, limit=10, out="adapters-api")
    assert Path(trained["path"], "adapter_model.safetensors").is_file()
