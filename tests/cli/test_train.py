import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tests.run_cli import ROOT, Run, listing, osrm

WEIGHTS = "adapter_model.safetensors"
ARGS = ("train", "starts/mood", "--epochs", 1, "--lr", 0.01, "--out", "new")


def same(ours: Path, theirs: Path) -> None:
    """Two folders hold the same files, byte by byte."""
    assert listing(ours) == listing(theirs)
    for name in listing(ours):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_result_on_stdout_the_rest_on_stderr(project_copy: Path) -> None:
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true", ""))
    run = osrm(*ARGS, cwd=project_copy)
    assert run.code == 0
    assert run.stdout.startswith("new/mood  dev ")
    assert run.stdout.count("\n") == 1
    assert "train mood" in run.stderr
    assert "steps/s" in run.stderr


def test_json_is_one_line_and_quiet_is_silent(project_copy: Path) -> None:
    run = osrm(*ARGS, "--json", "--quiet", cwd=project_copy)
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1
    found = json.loads(run.stdout)["adapters"]["mood"]
    log = json.loads((project_copy / "new/mood/training.json").read_text())
    assert found["dev"] == log["dev"]["scores"]
    assert found["drift"] == log["drift"]
    assert [step for step, _ in log["losses"]] == [1, 2, 3]  # 48 examples in batches of 16


@pytest.mark.parametrize(("task", "outputs"), [("mood", 2), ("pair", 3), ("score", 1)])
def test_adapter_is_a_plain_peft_folder(
    project: Path, tiny_model: Callable[[str], Path], task: str, outputs: int
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=outputs)
    model = PeftModel.from_pretrained(base, str(project / "adapters" / task))
    config = json.loads((project / "adapters" / task / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    stored = load_file(project / "adapters" / task / WEIGHTS)
    assert stored["base_model.model.classifier.weight"].shape == (outputs, 16)
    found = model.base_model.model.classifier.modules_to_save["default"].weight
    torch.testing.assert_close(found, stored["base_model.model.classifier.weight"])
    facts = json.loads((project / "adapters" / task / "osrm.json").read_text())
    assert facts["command"] == "train"
    assert facts["inputs"][0]["path"] == f"starts/{task}"


@pytest.mark.parametrize("letter", ["A", "B"])
def test_frozen_factor_stays(project_copy: Path, letter: str) -> None:
    run = osrm(*ARGS, "--freeze", letter, cwd=project_copy)
    assert run.code == 0
    start, end = (load_file(project_copy / name / WEIGHTS) for name in ("starts/mood", "new/mood"))
    for name, tensor in start.items():
        frozen = f"lora_{letter}" in name or letter == "B"  # with B zero for ever, A has no gradient either
        assert torch.equal(tensor, end[name]) == frozen, name
    assert ("B is zero and stays frozen" in run.stderr) == (letter == "B")
    drift = json.loads((project_copy / "new/mood/training.json").read_text())["drift"]["overall"]
    assert drift < 1e-6


def test_keep_best_keeps_the_weights_of_the_best_epoch(project_copy: Path) -> None:
    """A learning rate at which the score goes up and down; the kept weights are scored again by ``eval``."""
    args = ("train", "starts/mood", "--epochs", 6, "--lr", 0.05, "--batch-size", 8, "--dtype", "float32")
    assert osrm(*args, "--keep-best", "--out", "new", cwd=project_copy).code == 0
    assert osrm(*args, "--out", "last", cwd=project_copy).code == 0
    log, last = (json.loads((project_copy / out / "mood/training.json").read_text()) for out in ("new", "last"))
    heads = {row["epoch"]: row["headline"] for row in log["epochs"]}
    assert log["epochs"] == last["epochs"]
    assert last["best_epoch"] == 6
    assert log["best_epoch"] == max(heads, key=lambda epoch: (heads[epoch], -epoch)) < 6  # else nothing is tested
    for out, epoch in (("new", log["best_epoch"]), ("last", 6)):
        assert osrm("eval", f"{out}/mood", cwd=project_copy).code == 0
        scores = json.loads((project_copy / out / "mood/scores.json").read_text())
        assert scores["tasks"]["mood"]["headline"] == pytest.approx(heads[epoch])


def test_training_goes_on_with_the_head_of_an_adapter(project_copy: Path) -> None:
    """At a rate of zero the head stays what it was, instead of being drawn anew."""
    run = osrm("train", "adapters/mood", "--epochs", 1, "--lr", 0, "--seed", 3, "--out", "new", cwd=project_copy)
    assert run.code == 0
    before, after = (load_file(project_copy / name / WEIGHTS) for name in ("adapters/mood", "new/mood"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_limits_and_seed(project_copy: Path) -> None:
    assert osrm(*ARGS, "--limit", 16, "--dev-limit", 5, "--batch-size", 4, cwd=project_copy).code == 0
    log = json.loads((project_copy / "new/mood/training.json").read_text())
    assert log["dev"]["examples"] == 5
    assert [step for step, _ in log["losses"]] == [1, 2, 3, 4]
    osrm(*ARGS[:-1], "other", "--limit", 16, "--batch-size", 4, "--seed", 1, cwd=project_copy)
    other = json.loads((project_copy / "other/mood/training.json").read_text())
    assert other["losses"] != log["losses"]


def test_bfloat16_trains_float32_weights(project_copy: Path) -> None:
    assert osrm(*ARGS, "--dtype", "bfloat16", cwd=project_copy).code == 0
    assert {t.dtype for t in load_file(project_copy / "new/mood" / WEIGHTS).values()} == {torch.float32}
    run = osrm(*ARGS[:-1], "half", "--dtype", "float16", cwd=project_copy)
    assert (run.code, run.error) == (1, "float16 is too narrow to train in")


def test_dry_run_writes_nothing(project_copy: Path) -> None:
    before = listing(project_copy)
    run = osrm("train", "starts/mood", "starts/pair", "--out", "new", "--dry-run", cwd=project_copy)
    assert run.code == 0
    assert run.stdout == ("would write new/mood: 48 examples of mood\nwould write new/pair: 48 examples of pair\n")
    assert listing(project_copy) == before


def test_output_that_exists(project_copy: Path) -> None:
    run = osrm("train", "starts/mood", cwd=project_copy)
    assert (run.code, run.error) == (1, "adapters/mood exists already")
    before = (project_copy / "adapters/mood" / WEIGHTS).read_bytes()
    assert osrm("train", "starts/mood", "--epochs", 1, "--overwrite", cwd=project_copy).code == 0
    assert (project_copy / "adapters/mood" / WEIGHTS).read_bytes() != before


def test_diverged_loss_is_one_line_and_nothing_is_written(project_copy: Path) -> None:
    before = listing(project_copy)
    run = osrm(*ARGS[:2], "--epochs", 2, "--lr", 1e30, "--out", "new", cwd=project_copy)
    assert run.code == 1
    assert "the training loss is" in run.error or "hold NaN or infinity" in run.error
    assert "try a lower --lr" in run.stderr
    assert listing(project_copy) == before


def no_config(project_copy: Path) -> None:
    (project_copy / "starts/mood/adapter_config.json").unlink()


def wrong_width(project_copy: Path) -> None:
    path = project_copy / "starts/mood" / WEIGHTS
    save_file({n: t[:, :9].contiguous() if "lora_A" in n else t for n, t in load_file(path).items()}, path)


def missing_layer(project_copy: Path) -> None:
    path = project_copy / "starts/mood" / WEIGHTS
    save_file({n: t for n, t in load_file(path).items() if "layer.1.attention.self.value" not in n}, path)


def unknown_task(project_copy: Path) -> None:
    path = project_copy / "starts/mood/osrm.json"
    path.write_text(path.read_text().replace('"name": "mood"', '"name": "modo"'))


def head_of_another_task(project_copy: Path) -> None:
    shutil.rmtree(project_copy / "starts/mood")
    shutil.copytree(project_copy / "adapters/pair", project_copy / "starts/mood")
    path = project_copy / "starts/mood/osrm.json"
    path.write_text(path.read_text().replace('"name": "pair"', '"name": "mood"'))


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (no_config, "starts/mood is not an adapter: adapter_config.json is missing"),
    (wrong_width, "lora_A of bert.encoder.layer.0.attention.self.query is (2, 9), its base model needs (2, 16)"),
    (missing_layer, "the adapter has no factors for bert.encoder.layer.1.attention.self.value"),
    (unknown_task, "unknown task 'modo' in "),
    (head_of_another_task, "starts/mood: its head is for another task"),
]


@pytest.mark.parametrize(("breaking", "error"), BROKEN, ids=[breaking.__name__ for breaking, _ in BROKEN])
def test_bad_start_is_one_line(project_copy: Path, breaking: Callable[[Path], None], error: str) -> None:
    breaking(project_copy)
    run = osrm(*ARGS, cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert not (project_copy / "new/mood").exists()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("starts/mood",), "starts/mood and starts/mood would both be written to new/mood"),
        (("--data", "nowhere"), "no data folder nowhere"),
        (("--max-length", 300), "has positions for 256 tokens"),
        (("starts/nosuch",), "starts/nosuch"),
    ],
)
def test_bad_options_are_one_line(project_copy: Path, more: tuple[object, ...], error: str) -> None:
    before = listing(project_copy)
    run = osrm(*ARGS, *more, cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert listing(project_copy) == before


def test_wrong_base(project_copy: Path, tiny_model: Callable[[str], Path]) -> None:
    run = osrm(*ARGS, "--model", tiny_model("roberta"), cwd=project_copy)
    assert run.code == 1
    assert "starts/mood was made for base model" in run.error


def test_label_out_of_range_in_dev_is_found_before_training(project_copy: Path, text_tasks: Path) -> None:
    data = Path(shutil.copytree(text_tasks, project_copy / "data"))
    (data / "pair/task.toml").write_text('labels = ["yes", "no", "maybe"]\n')
    with (data / "pair/dev.jsonl").open("a") as file:
        file.write('{"a": "w1", "b": "w2", "label": "perhaps"}\n')
    run = osrm("train", "starts/mood", "starts/pair", "--data", "data", "--epochs", 1, "--out", "new", cwd=project_copy)
    assert run.code == 1
    assert "dev.jsonl:25: label 'perhaps'" in run.error
    assert not (project_copy / "new").exists()


# Unfinished runs

LONG = ("train", "starts/mood", "--epochs", "6", "--lr", "0.01", "--batch-size", "4", "--out", "new")


def unfinished(project_copy: Path, how: signal.Signals, epochs: int = 2) -> Run:
    """Begin a run as a process and end it by force once it has checkpoints of some epochs."""
    command = [sys.executable, "-m", "osrm_cli", *LONG]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    wanted = project_copy / f"new/.mood.training/checkpoint-{12 * epochs}/trainer_state.json"
    deadline = time.monotonic() + 120
    with subprocess.Popen(command, cwd=project_copy, env=environment, stdout=PIPE, stderr=PIPE, text=True) as child:
        while not wanted.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(how)
        out, err = child.communicate(timeout=60)
    return Run(child.returncode, out, err)


@pytest.fixture(scope="module")
def killed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose training was killed, and the uninterrupted run beside it in ``whole``."""
    work = Path(shutil.copytree(project, tmp_path_factory.mktemp("killed") / "work"))
    assert osrm(*LONG[:-1], "whole", cwd=work).code == 0
    assert unfinished(work, signal.SIGKILL).code == -signal.SIGKILL
    assert (work / "new/.mood.training").is_dir()
    assert not (work / "new/mood").exists()
    return work


@pytest.fixture
def broken_off(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "work"))


def test_resumed_run_has_the_bytes_of_an_uninterrupted_one(broken_off: Path) -> None:
    run = osrm(*LONG, "--resume", cwd=broken_off)
    assert run.code == 0, run
    same(broken_off / "new/mood", broken_off / "whole/mood")
    assert not (broken_off / "new/.mood.training").exists()


def test_checkpoint_that_was_cut_short_is_passed_over(broken_off: Path) -> None:
    work = broken_off / "new/.mood.training"
    newest = max(work.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    cut = work / "checkpoint-66"
    shutil.copytree(newest, cut)
    (cut / "trainer_state.json").write_text('{"epoch": 5.5, ')
    assert osrm(*LONG, "--resume", cwd=broken_off).code == 0
    same(broken_off / "new/mood", broken_off / "whole/mood")


def test_unfinished_run_is_not_trodden_on(broken_off: Path) -> None:
    run = osrm(*LONG, cwd=broken_off)
    assert (run.code, run.error) == (1, "new/.mood.training contains an unfinished run")
    assert "--resume" in run.stderr
    run = osrm(*LONG, "--seed", 1, "--resume", cwd=broken_off)
    assert (run.code, run.error) == (1, "new/.mood.training contains an unfinished run with different settings")
    assert osrm(*LONG, "--overwrite", cwd=broken_off).code == 0
    same(broken_off / "new/mood", broken_off / "whole/mood")


def test_resume_without_an_unfinished_run_begins_one(project_copy: Path) -> None:
    assert osrm(*ARGS, "--resume", cwd=project_copy).code == 0
    assert (project_copy / "new/mood" / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_interrupted_run_can_be_resumed(project_copy: Path, number: signal.Signals, code: int) -> None:
    run = unfinished(project_copy, number, 1)
    assert (run.code, run.stdout) == (code, "")
    assert "Traceback" not in run.stderr
    if number is signal.SIGINT:
        assert run.error == "interrupted"
    assert not (project_copy / "new/mood").exists()
    assert osrm(*LONG, "--resume", cwd=project_copy).code == 0


LAUNCHERS = {
    # On CPUs accelerate starts several processes through MPI alone, torchrun by itself.
    "accelerate launch --cpu -m osrm_cli": [1, 2, 3],
    "torchrun --standalone --nproc_per_node 2 -m osrm_cli": [1, 2],  # 48 examples in batches of 2 x 16
}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "steps"), LAUNCHERS.items(), ids=["accelerate", "torchrun"])
def test_launchers_train_and_one_process_writes(project_copy: Path, launcher: str, steps: list[int]) -> None:
    done = subprocess.run(
        [*launcher.split(), *map(str, ARGS), "--json", "--device", "cpu"],
        cwd=project_copy,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)["adapters"]["mood"]
    log = json.loads((project_copy / "new/mood/training.json").read_text())
    assert log["dev"]["scores"] == found["dev"]
    assert [step for step, _ in log["losses"]] == steps
    assert listing(project_copy / "new") == {f"mood/{name}" for name in listing(project_copy / "adapters/mood")}
