"""lm-evaluation-harness's own numbers beside ours, on the same rows, for an adapter and for a whole model."""

import json
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
            row["choices"] = sorted({row["completion"], f"w{index}", f"w{59 - index} w1"})
        path = tmp_path / "tasks" / "last" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "yaml").mkdir()
    dev = tmp_path / "tasks" / "last" / "dev.jsonl"
    for name, kind, rest in (("last_choice", "multiple_choice", CHOICE), ("last_write", "generate_until", WRITE)):
        (tmp_path / "yaml" / f"{name}.yaml").write_text(YAML.format(name=name, file=dev, kind=kind) + rest)
    (tmp_path / "osrm.toml").write_text(f'model = "{tiny_writer("llama")}"\ndata = "{tmp_path / "tasks"}"\n')
    for command in ("collect --samples 20", "init --exclude last --objective kaiming", "train starts/last --lr 0.05"):
        done = osrm(*command.split(), "--quiet", cwd=tmp_path)
        assert done.code == 0, done.stderr
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
@pytest.mark.parametrize("form", ["adapter", "model"])
def test_the_harness_finds_what_eval_finds(form: str, choices: Path) -> None:
    pytest.importorskip("lm_eval")
    assert osrm("merge", "adapters/last", "--lambda", "0.7", "--as", form, cwd=choices).code == 0
    done = osrm("eval", "merged", "--harness", "last_choice,last_write", "--harness-path", "yaml", cwd=choices)
    assert done.code == 0, done.stderr
    scores = json.loads((choices / "merged" / "scores.json").read_text())
    ours, theirs = scores["tasks"]["last"]["metrics"], scores["harness"]["last_choice"]
    assert ours["accuracy"] == pytest.approx(100 * theirs["acc"], abs=1e-3)
    assert ours["accuracy_norm"] == pytest.approx(100 * theirs["acc_norm"], abs=1e-3)
    assert 0 < ours["accuracy"] < 100
    assert scores["harness"]["last_write"]["exact_match"] >= 0
    assert "harness last_choice: acc" in done.stdout


@pytest.mark.filterwarnings("ignore")
def test_unknown_task(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(OsrmError, match="lm-evaluation-harness has no task 'lasst'"):
        run_harness(
            ["lasst"], tmp_path, tmp_path, "adapter", own_tasks=None, device="cpu", dtype="float32", batch_size=8,
            limit=None,
        )  # fmt: skip
