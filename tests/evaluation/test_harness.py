"""lm-evaluation-harness's own numbers beside ours, on the same rows, for an adapter and for a whole model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.harness import run_harness
from tests.run_cli import osrm

YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
target_delimiter: ""
"""
CHOICE = 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{choices.index(completion)}}"\n'
CHOICE += "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
WRITE = 'doc_to_target: "{{completion}}"\ngeneration_kwargs:\n  max_gen_toks: 3\n  do_sample: false\n  until: []\n'
WRITE += "metric_list:\n  - metric: exact_match\n"


@pytest.fixture
def choices(tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path) -> Path:
    """A project with one adapter that chooses among words, and the harness's description of the same task."""
    for split in ("train", "dev"):
        rows = [json.loads(line) for line in (completion_tasks / "last" / f"{split}.jsonl").read_text().splitlines()]
        for index, row in enumerate(rows):
            row["choices"] = sorted(
                {row["completion"], f"w{index}", f"w{59 - index} w1", "–––"}
            )  # 3 characters, 9 bytes
        path = tmp_path / "tasks" / "last" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(completion_tasks / "last", tmp_path / "plain" / "last")
    (tmp_path / "plain" / "last" / "task.toml").write_text('metrics = ["exact_match"]\nmax_new_tokens = 3\n')
    (tmp_path / "yaml").mkdir()
    dev = tmp_path / "tasks" / "last" / "dev.jsonl"
    plain = tmp_path / "plain" / "last" / "dev.jsonl"
    for name, kind, file, rest in (
        ("last_choice", "multiple_choice", dev, CHOICE),
        ("last_write", "generate_until", plain, WRITE),
    ):
        (tmp_path / "yaml" / f"{name}.yaml").write_text(YAML.format(name=name, file=file, kind=kind) + rest)
    (tmp_path / "osrm.toml").write_text(f'model = "{tiny_writer("llama")}"\ndata = "{tmp_path / "tasks"}"\n')
    for command in ("collect --samples 20", "init --exclude last --objective kaiming", "train starts/last --lr 0.003"):
        done = osrm(*command.split(), "--quiet", cwd=tmp_path)
        assert done.code == 0, done.stderr
    return tmp_path


def make_every_second_answer_right(folder: Path) -> None:
    """A small model knows no answer: the references become its own, so that matches are counted at all."""
    words = ("--data", "plain", "--predictions", "--out", "first.json", "--no-single")
    assert osrm("eval", "merged", *words, cwd=folder).code == 0
    answers = json.loads((folder / "first.json").read_text())["answers"]["last"]
    path = folder / "plain" / "last" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, answer in list(zip(rows, answers, strict=True))[::2]:
        row["completion"] = answer or row["completion"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
@pytest.mark.parametrize("form", ["adapter", "model"])
def test_the_harness_finds_what_eval_finds(form: str, choices: Path) -> None:
    pytest.importorskip("lm_eval")
    assert osrm("merge", "adapters/last", "--lambda", "0.7", "--as", form, cwd=choices).code == 0
    make_every_second_answer_right(choices)
    done = osrm("eval", "merged", "--harness", "last_choice,last_write", "--harness-path", "yaml", cwd=choices)
    assert done.code == 0, done.stderr
    scores = json.loads((choices / "merged" / "scores.json").read_text())
    ours, theirs = scores["tasks"]["last"]["metrics"], scores["harness"]["last_choice"]
    assert ours["accuracy"] == pytest.approx(100 * theirs["acc"], abs=1e-3)
    assert ours["accuracy_norm"] == pytest.approx(100 * theirs["acc_norm"], abs=1e-3)
    assert 0 < ours["accuracy"] < 100
    assert 0 < ours["accuracy_norm"] < 100
    assert osrm("eval", "merged", "--data", "plain", "--out", "plain.json", "--no-single", cwd=choices).code == 0
    written = json.loads((choices / "plain.json").read_text())["tasks"]["last"]["metrics"]["exact_match"]
    assert written == pytest.approx(100 * scores["harness"]["last_write"]["exact_match"], abs=1e-3)
    assert 40 < written < 100
    assert "harness last_choice: acc" in done.stdout


@pytest.mark.filterwarnings("ignore")
def test_unknown_task(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(OsrmError, match="lm-evaluation-harness has no task 'lasst'"):
        run_harness(
            ["lasst"], tmp_path, tmp_path, "adapter", own_tasks=None, device="cpu", dtype="float32", batch_size=8,
            limit=None,
        )  # fmt: skip
