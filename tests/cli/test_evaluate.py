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


def test_result_on_stdout_the_rest_on_stderr(work: Path) -> None:
    (work / "osrm.toml").write_text((work / "osrm.toml").read_text().replace("quiet = true", ""))
    run = osrm("eval", "merged", cwd=work)
    assert run.code == 0
    assert "Scores (dev)" in run.stdout
    for task in ("mood", "pair", "score", "average"):
        assert task in run.stdout
    assert "eval mood" in run.stderr


def test_json_is_one_line_and_the_file_says_the_same(work: Path) -> None:
    run = osrm("eval", "--json", cwd=work)
    assert (run.stderr, run.stdout.count("\n")) == ("", 1)
    printed, written = json.loads(run.stdout), scores(work / "merged")
    assert printed["path"] == "merged/scores.json"
    assert printed["tasks"] == written["tasks"]
    assert printed["average"] == written["average"]
    assert written["command"] == "eval"
    assert "merged/adapter_model.safetensors" in [entry["path"] for entry in written["inputs"]]
    assert {row["examples"] for row in written["tasks"].values()} == {24}
    assert set(written["tasks"]["score"]["metrics"]) == {"pearson", "spearman"}


def test_chosen_tasks_limit_out_and_same_bytes(work: Path) -> None:
    for out in ("one.json", "two.json"):
        run = osrm("eval", "merged", "--task", "pair", "--task", "mood", "--limit", 7, "--out", out, cwd=work)
        assert run.code == 0
    assert (work / "one.json").read_bytes() == (work / "two.json").read_bytes()
    found = json.loads((work / "one.json").read_text())["tasks"]
    assert set(found) == {"mood", "pair"}
    assert {row["examples"] for row in found.values()} == {7}
    assert not (work / "merged/scores.json").exists()


def test_file_says_how_the_scored_was_made(work: Path) -> None:
    assert osrm("eval", "merged", "--task", "mood", cwd=work).code == 0
    found = scores(work / "merged")
    assert (found["method"], found["options"], found["calibrated"]) == ("task-arith", {"lambda": 0.5}, False)
    assert set(found["adapters"]) == {"mood", "pair", "score"}
    log = json.loads((work / "adapters/mood/training.json").read_text())
    made = found["adapters"]["mood"]
    assert made["path"] == "adapters/mood"
    assert made["train"]["lr"] == 0.01
    assert made["drift"] == log["drift"]["overall"]
    assert made["start"] == json.loads((work / "adapters/mood/osrm.json").read_text()).get("start")
    assert osrm("eval", "adapters/mood", cwd=work).code == 0
    alone = scores(work / "adapters/mood")
    assert alone["adapters"] == {"mood": made}
    assert (alone["method"], alone["options"], alone["calibrated"]) == (None, {}, False)
    shutil.rmtree(work / "adapters")
    assert osrm("eval", "merged", "--task", "mood", "--overwrite", cwd=work).code == 0
    gone = {"path": made["path"], "sha256": made["sha256"], "start": None, "train": None, "drift": None}
    assert scores(work / "merged")["adapters"]["mood"] == gone


def test_predictions_give_the_scores_again(work: Path) -> None:
    from scipy.stats import pearsonr

    assert osrm("eval", "merged", "--predictions", cwd=work).code == 0
    found = scores(work / "merged")
    for task in ("mood", "pair"):
        pairs = list(zip(found["predictions"][task], found["labels"][task], strict=True))
        hits = 100 * sum(given == truth for given, truth in pairs) / len(pairs)
        assert hits == pytest.approx(found["tasks"][task]["headline"])
    given = found["predictions"]["score"]
    pearson = 100 * pearsonr(given, found["labels"]["score"]).statistic
    assert pearson == pytest.approx(found["tasks"]["score"]["metrics"]["pearson"], abs=1e-2)
    assert osrm("eval", "merged", "--overwrite", cwd=work).code == 0
    assert not {"predictions", "labels"} & scores(work / "merged").keys()


def test_batch_size_changes_nothing(work: Path) -> None:
    for out, size in (("one.json", 1), ("two.json", 24)):
        osrm("eval", "merged", "--batch-size", size, "--out", out, cwd=work)
    ours, theirs = (json.loads((work / name).read_text())["tasks"] for name in ("one.json", "two.json"))
    for task, row in ours.items():
        assert row["headline"] == pytest.approx(theirs[task]["headline"], abs=1e-2)


def test_single_scores_recorded_measured_or_absent(work: Path) -> None:
    """On the dev set that training scored, the record is taken; on fewer examples the adapter itself is scored."""
    log = json.loads((work / "adapters/mood/training.json").read_text())
    assert osrm("eval", "merged", "--task", "mood", cwd=work).code == 0
    assert scores(work / "merged")["tasks"]["mood"]["single"] == log["dev"]["scores"]["headline"]
    osrm("eval", "merged", "--task", "mood", "--limit", 9, "--overwrite", cwd=work)
    measured = scores(work / "merged")["tasks"]["mood"]["single"]
    osrm("eval", "adapters/mood", "--limit", 9, cwd=work)
    alone = scores(work / "adapters/mood")["tasks"]["mood"]
    assert alone["headline"] == alone["single"] == measured
    osrm("eval", "merged", "--task", "mood", "--no-single", "--overwrite", cwd=work)
    row = scores(work / "merged")["tasks"]["mood"]
    assert (row["single"], row["ratio"]) == (None, None)
    shutil.rmtree(work / "adapters")
    run = osrm("eval", "merged", "--task", "mood", "--limit", 9, "--overwrite", cwd=work)
    assert run.code == 0
    assert scores(work / "merged")["tasks"]["mood"]["single"] is None


def test_adapter_that_has_changed_since_is_not_scored_beside(work: Path) -> None:
    path = work / "adapters/mood" / WEIGHTS
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    osrm("eval", "merged", "--task", "mood", "--limit", 9, cwd=work)
    assert scores(work / "merged")["tasks"]["mood"]["single"] is None


def test_length_is_that_of_training(work: Path) -> None:
    osrm("train", "starts/mood", "--epochs", 1, "--lr", 0.01, "--max-length", 6, "--out", "short", cwd=work)
    osrm("merge", "short/mood", "--lambda", 1, "--out", "alone", cwd=work)
    assert osrm("eval", "alone", cwd=work).code == 0
    found = scores(work / "alone")
    assert found["settings"]["max_length"] == {"mood": 6}
    assert found["tasks"]["mood"]["ratio"] == pytest.approx(100)  # merged with itself alone, at the same length
    osrm("eval", "alone", "--max-length", 20, "--overwrite", cwd=work)
    found = scores(work / "alone")
    assert found["settings"]["max_length"] == {"mood": 20}
    assert found["tasks"]["mood"]["ratio"] == pytest.approx(100)  # measured again, not taken from the record


def test_matched_and_mismatched(work: Path, words: Path) -> None:
    data = Path(shutil.copytree(words, work / "data"))
    (data / "pair/dev.jsonl").rename(data / "pair/dev_matched.jsonl")
    rows = (data / "pair/dev_matched.jsonl").read_text().splitlines()[:10]
    (data / "pair/dev_mismatched.jsonl").write_text("\n".join(rows) + "\n")
    assert osrm("eval", "merged", "--task", "pair", "--data", "data", cwd=work).code == 0
    row = scores(work / "merged")["tasks"]["pair"]
    assert row["examples"] == 34
    assert set(row["metrics"]) == {"accuracy", "accuracy_mismatched"}
    assert row["headline"] == row["metrics"]["accuracy"]
    log = json.loads((work / "adapters/pair/training.json").read_text())
    assert row["single"] == log["dev"]["scores"]["headline"]  # the matched examples are those of training's dev set


def test_other_split(work: Path, words: Path) -> None:
    assert osrm("eval", "merged", "--task", "mood", "--split", "train", cwd=work).code == 0
    assert scores(work / "merged")["tasks"]["mood"]["examples"] == 48
    run = osrm("eval", "merged", "--split", "test", "--overwrite", cwd=work)
    assert "has no split 'test'" in run.error


def test_model_form_scores_singles_on_the_real_base(work: Path) -> None:
    adapters = [f"adapters/{task}" for task in ("mood", "pair", "score")]
    assert osrm("merge", *adapters, "--lambda", 0.5, "--as", "model", "--out", "whole", cwd=work).code == 0
    for limit in (24, 9):  # recorded, measured
        for folder in ("whole", "merged"):
            run = osrm("eval", folder, "--limit", limit, "--overwrite", cwd=work)
            assert run.code == 0, run
        ours, theirs = (scores(work / name)["tasks"] for name in ("whole", "merged"))
        for task, row in ours.items():
            assert row["single"] == pytest.approx(theirs[task]["single"], abs=1e-2)
            assert row["headline"] == pytest.approx(theirs[task]["headline"], abs=1e-2)


def test_task_aware_folder(work: Path) -> None:
    (work / "osrm.toml").write_text((work / "osrm.toml").read_text().replace("quiet = true", ""))
    adapters = [f"adapters/{task}" for task in ("mood", "pair", "score")]
    assert osrm("merge", *adapters, "--method", "emr", "--out", "emr", cwd=work).code == 0
    run = osrm("eval", "emr", cwd=work)
    assert run.code == 0, run
    assert "this is not one model" in run.stderr
    assert set(scores(work / "emr")["tasks"]) == {"mood", "pair", "score"}
    osrm("merge", "adapters/mood", "--method", "emr", "--out", "one", cwd=work)
    assert osrm("eval", "one", cwd=work).code == 0
    assert scores(work / "one")["tasks"]["mood"]["ratio"] == pytest.approx(100)  # a task alone keeps its update


def test_pooler_that_the_base_lacks_travels_with_every_classifier(
    work: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Scored one after the other on one backbone; plain PEFT, from a fresh model each time, says the same."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from osrm_cli.models.backbone import with_peft_adapter
    from osrm_cli.models.batching import compute_logits, tokenize_examples
    from osrm_cli.models.classifier import load_classifier, load_tokenizer
    from osrm_cli.tasks.loading import load_split

    base = tmp_path / "headless"
    BertModel.from_pretrained(tiny("bert"), add_pooling_layer=False).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(base)
    source = json.loads((work / "adapters/mood/osrm.json").read_text())["data"]["source"]
    for command in (
        "collect --samples 8 --out f",
        "init --each --features f --rank 2 --out s",
        "train s/mood s/pair --epochs 1 --lr 0.05 --out a",
        "merge a/mood a/pair --out m",
        "merge a/mood a/pair --as model --out w",
    ):
        more = ("--model", base) if command.startswith("collect") else ()
        run = osrm(*command.split(), *more, cwd=work, env={"OSRM_MODEL": str(base)})
        assert run.code == 0, run
    own = load_tokenizer(base)
    bare = load_classifier(base, 2, own, torch.float32, 0).model
    for task, outputs in (("mood", 2), ("pair", 3), ("mood", 2)):
        folder = work / "m/tasks" / task
        assert "base_model.model.bert.pooler.dense.weight" in load_file(folder / WEIGHTS)
        examples = load_split(task, source, "dev").examples
        torch.manual_seed(1)  # plain PEFT draws a pooler too, and replaces it
        fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
        plain = PeftModel.from_pretrained(fresh, str(folder)).eval()
        with torch.inference_mode():
            expected = torch.cat([plain(**own(*x.texts, return_tensors="pt")).logits for x in examples])
        with with_peft_adapter(bare, folder, outputs) as whole:
            encodings = tokenize_examples(own, examples, 128)
            found = compute_logits(whole, encodings, own, torch.device("cpu"), 8, lambda _: None)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    env = {"OSRM_MODEL": str(base)}
    assert osrm("eval", "m", cwd=work, env=env).code == 0
    assert osrm("eval", "w", cwd=work, env=env).code == 0
    for task, row in scores(work / "w")["tasks"].items():
        assert row["headline"] == pytest.approx(scores(work / "m")["tasks"][task]["headline"], abs=1e-2)


def test_dry_run_and_existing_output(work: Path) -> None:
    before = listing(work)
    run = osrm("eval", "merged", "--dry-run", cwd=work)
    assert (run.code, run.stdout) == (0, "would write merged/scores.json: mood, pair, score\n")
    assert listing(work) == before
    assert osrm("eval", "merged", "--limit", 3, cwd=work).code == 0
    run = osrm("eval", "merged", cwd=work)
    assert (run.code, run.error) == (1, "merged/scores.json exists already")
    assert osrm("eval", "merged", "--overwrite", cwd=work).code == 0
    assert scores(work / "merged")["tasks"]["mood"]["examples"] == 24


def without_head(work: Path) -> None:
    path = work / "adapters/mood" / WEIGHTS
    save_file({name: tensor for name, tensor in load_file(path).items() if "classifier" not in name}, path)


def truncated(work: Path) -> None:
    path = work / "adapters/mood" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])


def no_config(work: Path) -> None:
    (work / "adapters/mood/adapter_config.json").unlink()


def head_of_three(work: Path) -> None:
    pair = load_file(work / "adapters/pair" / WEIGHTS)
    mood = load_file(work / "adapters/mood" / WEIGHTS)
    heads = {name: tensor for name, tensor in pair.items() if "classifier" in name}
    save_file({**mood, **heads}, work / "adapters/mood" / WEIGHTS)


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (without_head, "adapters/mood has no classification head: classifier.weight is missing"),
    (truncated, "adapter_model.safetensors is damaged"),
    (no_config, "adapters/mood is not an adapter: adapter_config.json is missing"),
    (head_of_three, "adapters/mood does not fit the model with 2 outputs: size mismatch for"),
]


@pytest.mark.parametrize(("breaking", "error"), BROKEN, ids=[breaking.__name__ for breaking, _ in BROKEN])
def test_broken_adapter_is_one_line(work: Path, breaking: Callable[[Path], None], error: str) -> None:
    breaking(work)
    run = osrm("eval", "adapters/mood", cwd=work)
    assert run.code == 1
    assert error in run.error
    assert not (work / "adapters/mood/scores.json").exists()


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
def test_bad_options_are_one_line(work: Path, args: tuple[object, ...], error: str) -> None:
    before = listing(work)
    run = osrm("eval", *args, cwd=work)
    assert run.code == 1
    assert error in run.error
    assert run.stdout == ""
    assert listing(work) == before


def test_wrong_base(work: Path, tiny: Callable[[str], Path]) -> None:
    run = osrm("eval", "merged", "--model", tiny("roberta"), cwd=work)
    assert run.code == 1
    assert "merged was made for base model" in run.error


def test_adapter_of_another_program(work: Path) -> None:
    """No ``osrm.json``: the task is the folder's name, the data what ``--data`` says."""
    (work / "adapters/mood/osrm.json").unlink()
    (work / "adapters/mood/training.json").unlink()
    assert osrm("eval", "adapters/mood", cwd=work).code == 0
    assert scores(work / "adapters/mood")["tasks"]["mood"]["examples"] == 24
