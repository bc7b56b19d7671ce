"""``osrm train`` on tasks that are answered with text: frozen factors, drift, the best epoch, unfinished runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file

from osrm_cli.training.trainer import TrainingMonitor
from tests.run_cli import Run, listing, osrm

WEIGHTS = "adapter_model.safetensors"
STEPS = 5  # of an epoch: 40 examples in batches of 8
ARGS = ("train", "starts/last", "--lr", "0.01", "--batch-size", "8", "--epochs", "4")


@pytest.fixture(scope="module", params=["llama", "t5"])
def prepared(
    request: pytest.FixtureRequest,
    tiny_writer: Callable[[str], Path],
    completion_tasks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Features and starts of two text tasks; never written to by a test."""
    folder = tmp_path_factory.mktemp(f"text-{request.param}")
    (folder / "osrm.toml").write_text(
        f'model = "{tiny_writer(request.param)}"\ndata = "{completion_tasks}"\ndtype = "float32"\nquiet = true\n'
    )
    for command in ("collect --task last --task same --samples 20", "init --each --rank 4"):
        assert osrm(*command.split(), cwd=folder).code == 0
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    for name in ("osrm.toml", "features", "starts"):
        (tmp_path / name).symlink_to(prepared / name)
    return tmp_path


def train(project: Path, out: str, *words: object) -> Run:
    run = osrm(*ARGS, "--out", out, *words, cwd=project)
    assert run.code == 0, run.stderr
    return run


def read_log(project: Path, out: str) -> dict:
    return json.loads((project / out / "last" / "training.json").read_text())


def factors(folder: Path, letter: str) -> dict[str, torch.Tensor]:
    return {name: x.double() for name, x in load_file(folder / WEIGHTS).items() if f"lora_{letter}" in name}


def test_the_penalty_has_another_weight_for_text(project: Path) -> None:
    """What a start by ``gevd`` is trained with unless told otherwise."""
    train(project, "unsaid", "--limit", "8")
    train(project, "said", "--limit", "8", "--interference-penalty", 10)
    settings = json.loads((project / "unsaid/last/osrm.json").read_text())["settings"]
    assert settings["interference_penalty"] == 10
    assert (project / "unsaid/last" / WEIGHTS).read_bytes() == (project / "said/last" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("letter", ["A", "B"])
def test_frozen_factor_stays(project: Path, letter: str) -> None:
    run = train(project, "new", "--freeze", letter)
    for other in "AB":
        before, after = (factors(project / name, other) for name in ("starts/last", "new/last"))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            frozen = other == letter or letter == "B"  # with B zero for ever, A has no gradient either
            assert torch.equal(tensor, after[name]) == frozen, name
    assert ("B is zero and stays frozen, so that nothing is trained" in run.stderr) == (letter == "B")
    assert read_log(project, "new")["drift"]["overall"] == 0


def test_recorded_drift_is_that_of_the_files(project: Path) -> None:
    train(project, "new")
    drift = read_log(project, "new")["drift"]
    squares, norms = 0.0, 0.0
    before, after = (factors(project / name, "A") for name in ("starts/last", "new/last"))
    for name, start in before.items():
        rotation, _ = scipy.linalg.orthogonal_procrustes(start.T.numpy(), after[name].T.numpy())
        distance = float((start.T @ torch.from_numpy(rotation) - after[name].T).norm())
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert drift["layers"][layer] == pytest.approx(distance / float(start.norm()), rel=1e-5)
        squares, norms = squares + distance**2, norms + float(start.norm()) ** 2
    assert drift["overall"] == pytest.approx((squares / norms) ** 0.5, rel=1e-5)
    assert drift["overall"] > 1e-3


def test_keep_best_keeps_the_weights_of_the_best_epoch(project: Path) -> None:
    """A learning rate at which the likelihood goes up and down; the kept weights are scored again by ``eval``."""
    more = ("--epochs", 8, "--lr", 0.5, "--interference-penalty", 0)
    train(project, "new", *more, "--keep-best")
    train(project, "last", *more)
    log, last = read_log(project, "new"), read_log(project, "last")
    heads = {row["epoch"]: row["headline"] for row in log["epochs"]}
    assert log["epochs"] == last["epochs"]
    assert last["best_epoch"] == 8
    assert log["best_epoch"] == max(heads, key=lambda epoch: (heads[epoch], -epoch)) < 8  # else nothing is tested
    for out, epoch in (("new", log["best_epoch"]), ("last", 8)):
        assert osrm("eval", f"{out}/last", "--no-generate", cwd=project).code == 0
        scores = json.loads((project / out / "last" / "scores.json").read_text())["tasks"]["last"]
        assert scores["metrics"]["likelihood"] == pytest.approx(heads[epoch], rel=1e-5)
        assert read_log(project, out)["dev"]["scores"]["loss"] == pytest.approx(scores["metrics"]["loss"], abs=1e-5)


def break_off(project: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> Run:
    """A run that is interrupted in the middle of an epoch."""
    done, step = [], TrainingMonitor.on_step_end

    def interrupt(self: TrainingMonitor, *arguments: object, **settings: object) -> None:
        step(self, *arguments, **settings)  # type: ignore[arg-type]
        done.append(1)
        if len(done) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "on_step_end", interrupt)
        return osrm(*ARGS, "--out", "new", cwd=project)


def test_resumed_run_has_the_bytes_of_an_uninterrupted_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(project, "whole")
    broken = break_off(project, monkeypatch, 2 * STEPS + 3)
    assert (broken.code, broken.error) == (130, "interrupted")
    assert (project / "new/.last.training").is_dir()
    assert not (project / "new/last").exists()
    run = osrm(*ARGS, "--out", "new", cwd=project)
    assert (run.code, run.error) == (1, "new/.last.training contains an unfinished run")
    steps: list[int] = []
    step = TrainingMonitor.on_step_end
    monkeypatch.setattr(TrainingMonitor, "on_step_end", lambda self, *a, **b: (steps.append(1), step(self, *a, **b))[1])
    train(project, "new", "--resume")
    assert len(steps) == 2 * STEPS  # from the end of the second epoch
    ours, theirs = project / "new/last", project / "whole/last"
    assert listing(ours) == listing(theirs)
    for name in listing(ours):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert not (project / "new/.last.training").exists()
