import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertModel

from tests.run_cli import listing, osrm

WEIGHTS = "adapter_model.safetensors"


def scores(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "scores.json").read_text()))


def test_result_on_stdout_the_rest_on_stderr(project_copy: Path) -> None:
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true", ""))
    run = osrm("eval", "merged", cwd=project_copy)
    assert run.code == 0
    assert "Scores (dev)" in run.stdout
    for task in ("mood", "pair", "score", "average"):
        assert task in run.stdout
    assert "eval mood, merged" in run.stderr


def test_json_is_one_line_and_the_file_says_the_same(project_copy: Path) -> None:
    run = osrm("eval", "--json", cwd=project_copy)
    assert (run.stderr, run.stdout.count("\n")) == ("", 1)
    printed, written = json.loads(run.stdout), scores(project_copy / "merged")
    assert printed["path"] == "merged/scores.json"
    assert printed["tasks"] == written["tasks"]
    assert printed["average"] == written["average"]
    assert written["command"] == "eval"
    assert "merged/adapter_model.safetensors" in [entry["path"] for entry in written["inputs"]]
    assert {row["examples"] for row in written["tasks"].values()} == {24}
    assert set(written["tasks"]["score"]["metrics"]) == {"pearson", "spearman"}


def test_chosen_tasks_limit_out_and_same_bytes(project_copy: Path) -> None:
    for out in ("one.json", "two.json"):
        run = osrm("eval", "merged", "--task", "pair", "--task", "mood", "--limit", 7, "--out", out, cwd=project_copy)
        assert run.code == 0
    assert (project_copy / "one.json").read_bytes() == (project_copy / "two.json").read_bytes()
    found = json.loads((project_copy / "one.json").read_text())["tasks"]
    assert set(found) == {"mood", "pair"}
    assert {row["examples"] for row in found.values()} == {7}
    assert not (project_copy / "merged/scores.json").exists()


def test_file_says_how_the_scored_was_made(project_copy: Path) -> None:
    assert osrm("eval", "merged", "--task", "mood", cwd=project_copy).code == 0
    found = scores(project_copy / "merged")
    assert (found["method"], found["options"], found["calibrated"]) == ("task-arith", {"lambda": 0.5}, False)
    assert set(found["adapters"]) == {"mood", "pair", "score"}
    log = json.loads((project_copy / "adapters/mood/training.json").read_text())
    made = found["adapters"]["mood"]
    assert made["path"] == "adapters/mood"
    assert made["train"]["lr"] == 0.01
    assert made["drift"] == log["drift"]["overall"]
    assert made["start"] == json.loads((project_copy / "adapters/mood/osrm.json").read_text()).get("start")
    assert osrm("eval", "adapters/mood", cwd=project_copy).code == 0
    alone = scores(project_copy / "adapters/mood")
    assert alone["adapters"] == {"mood": made}
    assert (alone["method"], alone["options"], alone["calibrated"]) == (None, {}, False)
    shutil.rmtree(project_copy / "adapters")
    assert osrm("eval", "merged", "--task", "mood", "--overwrite", cwd=project_copy).code == 0
    gone = {"path": made["path"], "sha256": made["sha256"], "start": None, "train": None, "drift": None}
    assert scores(project_copy / "merged")["adapters"]["mood"] == gone


def test_predictions_give_the_scores_again(project_copy: Path) -> None:
    from scipy.stats import pearsonr

    assert osrm("eval", "merged", "--predictions", cwd=project_copy).code == 0
    found = scores(project_copy / "merged")
    for task in ("mood", "pair"):
        pairs = list(zip(found["predictions"][task], found["labels"][task], strict=True))
        hits = 100 * sum(given == truth for given, truth in pairs) / len(pairs)
        assert hits == pytest.approx(found["tasks"][task]["headline"])
    given = found["predictions"]["score"]
    pearson = 100 * pearsonr(given, found["labels"]["score"]).statistic
    assert pearson == pytest.approx(found["tasks"]["score"]["metrics"]["pearson"], abs=1e-2)
    assert osrm("eval", "merged", "--overwrite", cwd=project_copy).code == 0
    assert not {"predictions", "labels"} & scores(project_copy / "merged").keys()


def test_batch_size_changes_nothing(project_copy: Path) -> None:
    for out, size in (("one.json", 1), ("two.json", 24)):
        osrm("eval", "merged", "--batch-size", size, "--out", out, cwd=project_copy)
    ours, theirs = (json.loads((project_copy / name).read_text())["tasks"] for name in ("one.json", "two.json"))
    for task, row in ours.items():
        assert row["headline"] == pytest.approx(theirs[task]["headline"], abs=1e-2)


def loud(project: Path) -> None:
    """Let commands say their notes."""
    settings = project / "osrm.toml"
    settings.write_text(settings.read_text().replace("quiet = true", "quiet = false"))


def test_single_scores_recorded_measured_or_absent(project_copy: Path) -> None:
    """On the dev set that training scored, the record is taken; on fewer examples the adapter itself is scored."""
    log = json.loads((project_copy / "adapters/mood/training.json").read_text())
    assert osrm("eval", "merged", "--task", "mood", cwd=project_copy).code == 0
    assert scores(project_copy / "merged")["tasks"]["mood"]["single"] == log["dev"]["scores"]["headline"]
    osrm("eval", "merged", "--task", "mood", "--limit", 9, "--overwrite", cwd=project_copy)
    measured = scores(project_copy / "merged")["tasks"]["mood"]["single"]
    osrm("eval", "adapters/mood", "--limit", 9, cwd=project_copy)
    alone = scores(project_copy / "adapters/mood")["tasks"]["mood"]
    assert alone["headline"] == alone["single"] == measured
    osrm("eval", "merged", "--task", "mood", "--no-single", "--overwrite", cwd=project_copy)
    row = scores(project_copy / "merged")["tasks"]["mood"]
    assert (row["single"], row["ratio"]) == (None, None)
    shutil.rmtree(project_copy / "adapters")
    loud(project_copy)
    run = osrm("eval", "merged", "--task", "mood", "--limit", 9, "--overwrite", cwd=project_copy)
    assert run.code == 0
    assert "the adapter that 'mood' was merged from is not available: adapters/mood is missing" in run.stderr
    assert scores(project_copy / "merged")["tasks"]["mood"]["single"] is None


def test_adapter_that_has_changed_since_is_not_scored_beside(project_copy: Path) -> None:
    path = project_copy / "adapters/mood" / WEIGHTS
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    loud(project_copy)
    run = osrm("eval", "merged", "--task", "mood", "--limit", 9, cwd=project_copy)
    assert "adapters/mood has changed since 'mood' was merged from it; the single score is missing" in run.stderr
    assert scores(project_copy / "merged")["tasks"]["mood"]["single"] is None


def test_length_is_that_of_training(project_copy: Path) -> None:
    osrm("train", "starts/mood", "--epochs", 1, "--lr", 0.01, "--max-length", 6, "--out", "short", cwd=project_copy)
    osrm("merge", "short/mood", "--lambda", 1, "--out", "alone", cwd=project_copy)
    assert osrm("eval", "alone", cwd=project_copy).code == 0
    found = scores(project_copy / "alone")
    assert found["settings"]["max_length"] == {"mood": 6}
    assert found["tasks"]["mood"]["ratio"] == pytest.approx(100)  # merged with itself alone, at the same length
    osrm("eval", "alone", "--max-length", 20, "--overwrite", cwd=project_copy)
    found = scores(project_copy / "alone")
    assert found["settings"]["max_length"] == {"mood": 20}
    assert found["tasks"]["mood"]["ratio"] == pytest.approx(100)  # measured again, not taken from the record


def test_matched_and_mismatched(project_copy: Path, text_tasks: Path) -> None:
    data = Path(shutil.copytree(text_tasks, project_copy / "data"))
    (data / "pair/dev.jsonl").rename(data / "pair/dev_matched.jsonl")
    rows = (data / "pair/dev_matched.jsonl").read_text().splitlines()[:10]
    (data / "pair/dev_mismatched.jsonl").write_text("\n".join(rows) + "\n")
    assert osrm("eval", "merged", "--task", "pair", "--data", "data", cwd=project_copy).code == 0
    row = scores(project_copy / "merged")["tasks"]["pair"]
    assert row["examples"] == 34
    assert set(row["metrics"]) == {"accuracy", "accuracy_mismatched"}
    assert row["headline"] == row["metrics"]["accuracy"]
    log = json.loads((project_copy / "adapters/pair/training.json").read_text())
    assert row["single"] == log["dev"]["scores"]["headline"]  # the matched examples are those of training's dev set


def test_other_split(project_copy: Path, text_tasks: Path) -> None:
    assert osrm("eval", "merged", "--task", "mood", "--split", "train", cwd=project_copy).code == 0
    assert scores(project_copy / "merged")["tasks"]["mood"]["examples"] == 48
    run = osrm("eval", "merged", "--split", "test", "--overwrite", cwd=project_copy)
    assert "has no split 'test'" in run.error


def test_model_form_scores_singles_on_the_real_base(project_copy: Path) -> None:
    adapters = [f"adapters/{task}" for task in ("mood", "pair", "score")]
    assert osrm("merge", *adapters, "--lambda", 0.5, "--as", "model", "--out", "whole", cwd=project_copy).code == 0
    for limit in (24, 9):  # recorded, measured
        for folder in ("whole", "merged"):
            run = osrm("eval", folder, "--limit", limit, "--overwrite", cwd=project_copy)
            assert run.code == 0, run
        ours, theirs = (scores(project_copy / name)["tasks"] for name in ("whole", "merged"))
        for task, row in ours.items():
            assert row["single"] == pytest.approx(theirs[task]["single"], abs=1e-2)
            assert row["headline"] == pytest.approx(theirs[task]["headline"], abs=1e-2)


def test_task_aware_folder(project_copy: Path) -> None:
    (project_copy / "osrm.toml").write_text((project_copy / "osrm.toml").read_text().replace("quiet = true", ""))
    adapters = [f"adapters/{task}" for task in ("mood", "pair", "score")]
    assert osrm("merge", *adapters, "--method", "emr", "--out", "emr", cwd=project_copy).code == 0
    run = osrm("eval", "emr", cwd=project_copy)
    assert run.code == 0, run
    assert "this is not one model" in run.stderr
    assert set(scores(project_copy / "emr")["tasks"]) == {"mood", "pair", "score"}
    osrm("merge", "adapters/mood", "--method", "emr", "--out", "one", cwd=project_copy)
    assert osrm("eval", "one", cwd=project_copy).code == 0
    assert scores(project_copy / "one")["tasks"]["mood"]["ratio"] == pytest.approx(100)  # a task alone keeps its update


def test_pooler_that_the_base_lacks_travels_with_every_classifier(
    project_copy: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Scored one after the other on one backbone; plain PEFT, from a fresh model each time, says the same."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from osrm_cli.adapters.open_adapter import open_adapter
    from osrm_cli.models.classifier import load_classifier, load_tokenizer, with_adapter_on_backbone
    from osrm_cli.models.token_batches import compute_logits, tokenize_for_classifier
    from osrm_cli.tasks.loading import load_split

    base = tmp_path / "headless"
    BertModel.from_pretrained(tiny_model("bert"), add_pooling_layer=False).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(base)
    source = json.loads((project_copy / "adapters/mood/osrm.json").read_text())["data"]["source"]
    for command in (
        "collect --samples 8 --out f",
        "init --each --features f --rank 2 --out s",
        "train s/mood s/pair --epochs 1 --lr 0.05 --out a",
        "merge a/mood a/pair --out m",
        "merge a/mood a/pair --as model --out w",
    ):
        more = ("--model", base) if command.startswith("collect") else ()
        run = osrm(*command.split(), *more, cwd=project_copy, env={"OSRM_MODEL": str(base)})
        assert run.code == 0, run
    own = load_tokenizer(base)
    bare = load_classifier(base, 2, own, torch.float32, 0).model
    for task, outputs in (("mood", 2), ("pair", 3), ("mood", 2)):
        folder = project_copy / "m/tasks" / task
        assert "base_model.model.bert.pooler.dense.weight" in load_file(folder / WEIGHTS)
        examples = load_split(task, source, "dev").examples
        torch.manual_seed(1)  # plain PEFT draws a pooler too, and replaces it
        fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
        plain = PeftModel.from_pretrained(fresh, str(folder)).eval()
        with torch.inference_mode():
            expected = torch.cat([plain(**own(*x.texts, return_tensors="pt")).logits for x in examples])
        with with_adapter_on_backbone(bare, open_adapter(folder), outputs) as whole:
            encodings = tokenize_for_classifier(own, examples, 128)
            found = compute_logits(whole, encodings, own, torch.device("cpu"), 8, lambda _: None)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    env = {"OSRM_MODEL": str(base)}
    assert osrm("eval", "m", cwd=project_copy, env=env).code == 0
    assert osrm("eval", "w", cwd=project_copy, env=env).code == 0
    for task, row in scores(project_copy / "w")["tasks"].items():
        assert row["headline"] == pytest.approx(scores(project_copy / "m")["tasks"][task]["headline"], abs=1e-2)


def test_dry_run_and_existing_output(project_copy: Path) -> None:
    before = listing(project_copy)
    run = osrm("eval", "merged", "--dry-run", cwd=project_copy)
    assert (run.code, run.stdout) == (0, "would write merged/scores.json: mood, pair, score\n")
    assert listing(project_copy) == before
    assert osrm("eval", "merged", "--limit", 3, cwd=project_copy).code == 0
    run = osrm("eval", "merged", cwd=project_copy)
    assert (run.code, run.error) == (1, "merged/scores.json exists already")
    assert osrm("eval", "merged", "--overwrite", cwd=project_copy).code == 0
    assert scores(project_copy / "merged")["tasks"]["mood"]["examples"] == 24


def without_head(project_copy: Path) -> None:
    path = project_copy / "adapters/mood" / WEIGHTS
    save_file({name: tensor for name, tensor in load_file(path).items() if "classifier" not in name}, path)


def truncated(project_copy: Path) -> None:
    path = project_copy / "adapters/mood" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])


def no_config(project_copy: Path) -> None:
    (project_copy / "adapters/mood/adapter_config.json").unlink()


def head_of_three(project_copy: Path) -> None:
    pair = load_file(project_copy / "adapters/pair" / WEIGHTS)
    mood = load_file(project_copy / "adapters/mood" / WEIGHTS)
    heads = {name: tensor for name, tensor in pair.items() if "classifier" in name}
    save_file({**mood, **heads}, project_copy / "adapters/mood" / WEIGHTS)


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (without_head, "adapters/mood has no classification head: classifier.weight is missing"),
    (truncated, "adapter_model.safetensors is damaged"),
    (no_config, "adapters/mood is not an adapter: adapter_config.json is missing"),
    (head_of_three, "adapters/mood does not fit the model with 2 outputs: size mismatch for"),
]


@pytest.mark.parametrize(("breaking", "error"), BROKEN, ids=[breaking.__name__ for breaking, _ in BROKEN])
def test_broken_adapter_is_one_line(project_copy: Path, breaking: Callable[[Path], None], error: str) -> None:
    breaking(project_copy)
    run = osrm("eval", "adapters/mood", cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert not (project_copy / "adapters/mood/scores.json").exists()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("nowhere",), "nowhere is missing"),
        (("starts/mood",), "starts/mood has no classification head"),
        (("merged", "--task", "nosuch"), "merged has no task 'nosuch'"),
        (("merged", "--data", "nowhere"), "no data folder nowhere"),
        (("merged", "--max-length", 999), "has positions for 256 tokens"),
    ],
    ids=str,
)
def test_bad_options_are_one_line(project_copy: Path, args: tuple[object, ...], error: str) -> None:
    before = listing(project_copy)
    run = osrm("eval", *args, cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert run.stdout == ""
    assert listing(project_copy) == before


def test_wrong_base(project_copy: Path, tiny_model: Callable[[str], Path]) -> None:
    run = osrm("eval", "merged", "--model", tiny_model("roberta"), cwd=project_copy)
    assert run.code == 1
    assert "merged was made for base model" in run.error


def test_adapter_of_another_program(project_copy: Path) -> None:
    """No ``osrm.json``: the task is the folder's name, the data what ``--data`` says."""
    (project_copy / "adapters/mood/osrm.json").unlink()
    (project_copy / "adapters/mood/training.json").unlink()
    assert osrm("eval", "adapters/mood", cwd=project_copy).code == 0
    assert scores(project_copy / "adapters/mood")["tasks"]["mood"]["examples"] == 24
