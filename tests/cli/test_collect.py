import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.features.statistics.table import STATISTICS
from tests.run_cli import listing, osrm

ARGS = ("collect", "--task", "mood", "--samples", 8, "--out", "new")


def facts(path: Path) -> dict[str, object]:
    return dict(FeaturesFile.open(path).record)


def test_result_on_stdout_the_rest_on_stderr(project_copy: Path) -> None:
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true", ""))
    run = osrm(*ARGS, cwd=project_copy)
    assert run.code == 0
    assert run.stdout.startswith("new/mood.safetensors  8 examples, ")
    assert "collect mood" in run.stderr
    assert "examples/s" in run.stderr


def test_json_is_one_line_and_quiet_is_silent(project_copy: Path) -> None:
    run = osrm(*ARGS, "--json", "--quiet", cwd=project_copy)
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1
    found = json.loads(run.stdout)["features"]["mood"]
    opened = FeaturesFile.open(project_copy / found["path"])
    assert (found["examples"], found["tokens"], found["layers"]) == (8, opened.tokens, 4)


def test_every_task_of_the_folder_by_default(project_copy: Path) -> None:
    run = osrm("collect", "--samples", 4, "--out", "new", cwd=project_copy)
    assert run.code == 0
    assert listing(project_copy / "new") == {"mood.safetensors", "pair.safetensors", "score.safetensors"}


def test_file_says_where_it_comes_from(project_copy: Path) -> None:
    osrm(*ARGS, "--seed", 5, "--max-length", 9, "--pooling", "padded", cwd=project_copy)
    found = facts(project_copy / "new/mood.safetensors")
    assert found["settings"] == {"samples": 8, "seed": 5, "pooling": "padded", "max_length": 9}
    assert found["command"] == "collect"
    assert found["statistics"] == ["mean", "second-moment"]
    assert found["target_modules"] == ["query", "value"]
    assert found["tokens"] == 8 * 9  # every position counts


def test_same_inputs_same_bytes_whatever_the_batch_size(project_copy: Path) -> None:
    for out in ("one", "two"):
        assert osrm(*ARGS[:-1], out, cwd=project_copy).code == 0
    assert (project_copy / "one/mood.safetensors").read_bytes() == (project_copy / "two/mood.safetensors").read_bytes()
    assert osrm(*ARGS[:-1], "three", "--batch-size", 3, cwd=project_copy).code == 0
    ours, theirs = load_file(project_copy / "one/mood.safetensors"), load_file(project_copy / "three/mood.safetensors")
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-6 * tensor.norm()


def test_seed_draws_other_examples_and_few_samples_begin_many(project_copy: Path) -> None:
    for out, more in (("a", ()), ("b", ("--seed", 1)), ("c", ("--samples", 16))):
        assert osrm(*ARGS[:-1], out, "--statistic", "samples", *more, cwd=project_copy).code == 0
    key = "bert.encoder.layer.0.attention.self.query.samples"
    a, b, c = (load_file(project_copy / out / "mood.safetensors")[key] for out in "abc")
    assert a.shape == b.shape
    assert not a.equal(b)
    assert (a - c[:8]).norm() < 1e-5 * a.norm()


def test_statistics_are_those_that_were_asked_for(project_copy: Path) -> None:
    run = osrm(
        *ARGS, "--statistic", "samples", "--statistic", "sketch:3", "--target-modules", "dense", cwd=project_copy
    )
    assert run.code == 0, run
    tensors = load_file(project_copy / "new/mood.safetensors")
    assert {name.rpartition(".")[2] for name in tensors} == {"samples", "sketch:3"}
    assert tensors["bert.encoder.layer.1.output.dense.samples"].shape == (8, 32)
    assert tensors["bert.encoder.layer.1.output.dense.sketch:3"].shape == (3, 32)


def test_dry_run_writes_nothing(project_copy: Path) -> None:
    before = listing(project_copy)
    run = osrm(*ARGS, "--dry-run", "--json", cwd=project_copy)
    found = json.loads(run.stdout)
    assert (run.code, found["would_write"]) == (0, ["new/mood.safetensors"])
    described = found["tasks"]["mood"]
    assert (described["examples"], described["columns"], described["kind"]) == (48, ["text"], "classification")
    assert sum(described["labels"].values()) == 48
    assert listing(project_copy) == before
    assert not (project_copy / "new").exists()
    text = osrm(*ARGS, "--dry-run", cwd=project_copy).stdout
    assert "8 examples, 4 layers" in text
    assert 'columns = ["text"]' in text


def test_what_was_made_of_odd_rows_is_a_warning(project_copy: Path) -> None:
    rows = [{"Text": f"w{i}", "gold_label": "-" if i == 3 else "ab"[i % 2]} for i in range(8)]
    (project_copy / "odd" / "mine").mkdir(parents=True)
    (project_copy / "odd/mine/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = osrm("collect", "--data", "odd", "--quiet", "--out", "new", cwd=project_copy)
    assert run.code == 0
    assert run.stdout.startswith("new/mine.safetensors  7 examples, ")
    place = "odd/mine/train.jsonl"
    assert run.stderr == f"warning: {place}: left out 1 of 8 rows without label, the first at {place}:4\n"


def test_a_name_that_later_commands_refuse_is_refused(project_copy: Path) -> None:
    (project_copy / "odd" / "a&b").mkdir(parents=True)
    (project_copy / "odd/a&b/train.csv").write_text("text,label\nw1,0\nw2,1\n")
    run = osrm("collect", "--data", "odd", "--out", "new", cwd=project_copy)
    assert (run.code, run.error) == (1, "'a&b' cannot be the name of a task")


def test_output_that_exists_is_refused_before_anything_is_read(project_copy: Path) -> None:
    old = (project_copy / "features/mood.safetensors").read_bytes()
    run = osrm("collect", "--task", "mood", "--data", "nowhere-at-all", cwd=project_copy)
    assert (run.code, run.error) == (1, "features/mood.safetensors exists already")
    assert osrm("collect", "--task", "mood", "--samples", 3, "--overwrite", cwd=project_copy).code == 0
    assert (project_copy / "features/mood.safetensors").read_bytes() != old


def test_list_names_every_statistic_and_help_too(tmp_path: Path) -> None:
    run = osrm("collect", "--list", cwd=tmp_path)
    rows = json.loads(osrm("collect", "--list", "--json", cwd=tmp_path).stdout)["statistics"]
    text = osrm("collect", "--help", cwd=tmp_path).stdout.replace("-\n", "-").replace(" ", "").replace("\n", "")
    assert (run.code, run.stderr) == (0, "")
    assert [row["name"] for row in rows] == [row.name for row in STATISTICS]
    for row, line in zip(STATISTICS, run.stdout.splitlines()[1:], strict=True):
        assert line.startswith(row.name)
        assert line.endswith(row.summary)
        assert row.name in text


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--task", "moode"), "unknown task 'moode' in "),
        (("--data", "nowhere"), "no data folder nowhere"),
        (("--statistic", "maen"), "unknown statistic 'maen', expected one of: mean"),
        (("--target-modules", "qeury"), "no linear layer matches --target-modules qeury"),
        (("--model", "nowhere/at-all"), "base model 'nowhere/at-all' is neither a folder nor in the hub's cache"),
        (("--max-length", 257), "has positions for 256 tokens, fewer than the length of 257"),
        (("--max-length", 2), "a length of 2 tokens is too short: 2 special tokens leave no room for text"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(project_copy: Path, more: tuple[object, ...], error: str) -> None:
    before = listing(project_copy)
    run = osrm(*ARGS, *more, cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert run.stdout == ""
    assert listing(project_copy) == before


def test_unknown_task_names_the_nearest_first(project_copy: Path) -> None:
    assert "hint: there are: score, " in osrm("collect", "--task", "scores", cwd=project_copy).stderr


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"text": "w1", "label": ', "train.jsonl:3: "),
        ('{"text": "w1", "label": 7}', "train.jsonl:3: label 7"),
        ('{"text": ["w1"], "label": 1}', "train.jsonl:3: column 'text' holds ['w1']"),
    ],
    ids=["unreadable", "out of range", "no text"],
)
def test_bad_row_is_named_by_file_and_line(project_copy: Path, line: str, error: str) -> None:
    folder = project_copy / "data" / "mine"
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text('columns = ["text"]\nlabels = ["bad", "good"]\n')
    good = '{"text": "w1 w2", "label": 1}\n'
    (folder / "train.jsonl").write_text(good + good + line + "\n" + good)
    run = osrm("collect", "--data", "data", "--out", "new", cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert not (project_copy / "new").exists()


@pytest.mark.parametrize("more", [("--samples", "0"), ("--samples", "x"), ("--device", "tpu"), ("--nosuch",)])
def test_usage_errors_end_with_2(project_copy: Path, more: tuple[str, ...]) -> None:
    run = osrm(*ARGS, *more, cwd=project_copy)
    assert run.code == 2
    assert run.stdout == ""


def test_hub_offline_names_the_three_ways_out(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    run = osrm("collect", "--task", "rte", "--data", "hub", "--out", "new", cwd=project_copy)
    assert run.code == 1
    assert "GLUE's 'rte' is not in the cache" in run.error
    for way in ("--data mini", "--data FOLDER", "HF_HOME"):
        assert way in run.stderr


def test_data_of_a_family_with_other_positions(project_copy: Path, tiny_model: Callable[[str], Path]) -> None:
    """RoBERTa counts positions from the one behind that of padding."""
    run = osrm(*ARGS, "--model", tiny_model("roberta"), "--max-length", 256, cwd=project_copy)
    assert "has positions for 255 tokens" in run.error
    assert osrm(*ARGS, "--model", tiny_model("roberta"), "--max-length", 255, cwd=project_copy).code == 0
