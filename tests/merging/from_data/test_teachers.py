"""Adapters of other base models as teachers: the merged adapter says what they say, as PEFT and transformers see it."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.from_data import matching
from osrm_cli.merging.merge import merge_adapters
from osrm_cli.storage import records
from tests import text_adapters, trained_adapters
from tests.conftest import SMALL, save_tokenizer
from tests.run_cli import osrm

torch.set_num_threads(1)
OPTIONS = {"samples": 24, "steps": 80, "lr": 1e-2}


@pytest.fixture(autouse=True)
def learn_from_all_texts(monkeypatch):
    monkeypatch.setattr(matching, "HELD_OUT", 99)  # too few texts to hold one out: those that are learned from serve


def save_model(folder: Path, name: str, auto_class: str, width: int, **sizes: object) -> Path:
    """A tiny model whose weights are large enough to tell texts apart."""
    size = save_tokenizer(folder, "llama" if "Llama" in name else "bert")
    wide = {**SMALL, "hidden_size": width, "max_position_embeddings": 512, "initializer_range": 0.3, **sizes}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(1)
    config = getattr(transformers, name)(vocab_size=size, **ids, **wide)
    getattr(transformers, auto_class).from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifiers(text_tasks, tmp_path_factory):
    """``mood`` on a small BERT, ``pair`` and ``score`` on a wider one."""
    root = tmp_path_factory.mktemp("classifiers")
    base, wide = (save_model(root / f"base-{width}", "BertConfig", "AutoModel", width) for width in (16, 24))
    for task, model in (("mood", base), ("pair", wide), ("score", wide)):
        trained_adapters.save(root / task, model, "bert", text_tasks)
    return root, base, wide


def said_by(model, tokenizer, rows):
    """A classifier's logits, one text at a time."""
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*row, return_tensors="pt")).logits for row in rows])


def texts_of(data: Path, task: str, count: int = 48):
    rows = [json.loads(line) for line in (data / task / "train.jsonl").read_text().splitlines()[:count]]
    return [(row["a"], row["b"]) if "a" in row else (row["text"],) for row in rows]


def distance_in_units(task, found, wanted):
    """What a teacher's task counts: divergence or squared distance, in units of the best constant, three times."""
    if task == "score":
        return 3 * float((found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())
    p = wanted.softmax(-1)
    unit = (p * (p / p.mean(0)).log()).sum(-1).mean()
    return 3 * float((p * (p.log() - found.log_softmax(-1))).sum(-1).mean() / unit)


@pytest.mark.parametrize("tasks", [("mood", "pair", "score"), ("pair", "score")], ids=["mixed", "all-foreign"])
def test_the_merged_adapter_says_what_teachers_of_a_wider_model_say(classifiers, text_tasks, tmp_path, tasks):
    """Distances computed again with PEFT's models, from the folder that was written."""
    root, base, wide = classifiers
    options = {**OPTIONS, "samples": 48}
    result = merge_adapters([root / task for task in tasks], "distill", options=options, model=str(base),
                            out=tmp_path / "merged")  # fmt: skip
    record = records.read_record(tmp_path / "merged")
    assert record["teachers"] == {task: {"base": str(wide), "compared": "logits"} for task in tasks if task != "mood"}
    assert record.get("mixed_texts", {}) == ({"mood": 7 * 48} if "mood" in tasks else {})  # none of foreign teachers'
    merged = open_adapter(tmp_path / "merged")
    assert {layer.rank for layer in merged.layers.values()} == {3 * len(tasks)}
    assert {name.rpartition(".")[2] for name in merged.layers} == {"query", "value"}
    for task in ("pair", "score"):
        rows = texts_of(text_tasks, task)
        teacher = trained_adapters.dense(root / task, wide, task)
        bare = AutoModelForSequenceClassification.from_pretrained(base, num_labels=trained_adapters.LABELS[task])
        student = PeftModel.from_pretrained(bare, str(tmp_path / "merged/tasks" / task)).eval()
        wanted = said_by(teacher, AutoTokenizer.from_pretrained(wide), rows)
        found = said_by(student, AutoTokenizer.from_pretrained(base), rows)
        after = distance_in_units(task, found, wanted)
        row = result.summary["distance"][task]
        assert after == pytest.approx(row["after"], rel=1e-3)
        assert after < 0.8 * row["before"]
        assert after < 2  # a constant has 3


@pytest.fixture(scope="module")
def writers(completion_tasks, tiny_writer, tmp_path_factory):
    """``same`` on a small Llama, ``last`` on a wider one, ``backwards`` on a Qwen that reads letters, not words."""
    root = tmp_path_factory.mktemp("writers")
    base, wide = (
        save_model(root / f"llama-{width}", "LlamaConfig", "AutoModelForCausalLM", width, num_key_value_heads=1)
        for width in (16, 24)
    )
    letters = tiny_writer("qwen2")
    for task, model in (("same", base), ("last", wide), ("backwards", letters)):
        text_adapters.save(root / task, model, completion_tasks)
    return root, base, wide, letters


def written_by(model, tokenizer, prompt, count):
    """The tokens that a model writes after a prompt, greedily."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    settings = {"max_new_tokens": count, "max_length": None, "do_sample": False, "pad_token_id": 0}
    settings["eos_token_id"] = tokenizer.eos_token_id
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()


def next_token_log_probabilities(model, tokenizer, prompt, answer):
    """At the positions of an answer, ``(len(answer), vocabulary)``."""
    ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1)


def merged_writer(folder, base):
    return PeftModel.from_pretrained(text_adapters.bare(base), str(folder)).eval()


def prompts_of(data: Path, task: str, count: int):
    return [json.loads(line)["prompt"] for line in (data / task / "train.jsonl").read_text().splitlines()[:count]]


def test_a_teacher_with_the_same_vocabulary_is_compared_token_by_token(writers, completion_tasks, tmp_path):
    root, base, wide, _ = writers
    paths = [root / "same", root / "last"]
    result = merge_adapters(paths, "distill", options={**OPTIONS, "samples": 40}, model=str(base), out=tmp_path / "out")
    assert records.read_record(tmp_path / "out")["teachers"] == {"last": {"base": str(wide), "compared": "logits"}}
    tokenizer, teacher = AutoTokenizer.from_pretrained(base), text_adapters.dense(root / "last", wide)
    divergences: dict[str, list[torch.Tensor]] = {"merged": [], "base": []}
    for name, model in (("merged", merged_writer(tmp_path / "out", base)), ("base", text_adapters.bare(base))):
        for prompt in prompts_of(completion_tasks, "last", 40):
            answer = written_by(teacher, tokenizer, prompt, 64)
            wanted = next_token_log_probabilities(teacher, tokenizer, prompt, answer)
            found = next_token_log_probabilities(model, tokenizer, prompt, answer)
            divergences[name].append((wanted.exp() * (wanted - found)).sum(-1))
    merged, plain = (float(torch.cat(values).mean()) for values in divergences.values())
    row = result.summary["distance"]["last"]
    assert 3 * merged / plain == pytest.approx(row["after"], rel=1e-3)
    assert row["after"] < 0.95 * row["before"]


def test_of_a_teacher_with_another_vocabulary_the_text_is_learned(writers, completion_tasks, tmp_path):
    root, base, _, letters = writers
    paths = [root / "same", root / "backwards"]
    result = merge_adapters(paths, "distill", options={**OPTIONS, "samples": 40}, model=str(base), out=tmp_path / "out")
    record = records.read_record(tmp_path / "out")
    assert record["teachers"] == {"backwards": {"base": str(letters), "compared": "written text"}}
    row = result.summary["distance"]["backwards"]
    assert row["after"] < 0.8 * row["before"]
    merged, tokenizer = merged_writer(tmp_path / "out", base), AutoTokenizer.from_pretrained(base)
    teacher, reads = text_adapters.dense(root / "backwards", letters), AutoTokenizer.from_pretrained(letters)
    losses: dict[str, list[torch.Tensor]] = {"merged": [], "base": []}
    for name, model in (("merged", merged), ("base", text_adapters.bare(base))):
        for prompt in prompts_of(completion_tasks, "backwards", 40):
            written = written_by(teacher, reads, prompt, 64)
            text = reads.decode(written, skip_special_tokens=True)
            ids = tokenizer(prompt + text)["input_ids"][len(tokenizer(prompt)["input_ids"]) :]
            ids += [tokenizer.eos_token_id] if reads.eos_token_id in written else []
            found = next_token_log_probabilities(model, tokenizer, prompt, ids)
            losses[name].append(-found[torch.arange(len(ids)), ids])
    merged_loss, plain = (float(torch.cat(values).mean()) for values in losses.values())
    assert 3 * merged_loss / plain == pytest.approx(row["after"], rel=1e-2)


def test_the_command_from_outside(classifiers, tmp_path):
    root, base, wide = classifiers
    few = ("--steps", 5, "--samples", 12, "--lr", 0.01)
    words = ("merge", root / "mood", root / "pair", "--method", "distill", "--base", base, *few)
    run = osrm(*words, cwd=tmp_path)
    assert run.code == 0, run.stderr
    assert f"pair: learned from a teacher on {wide}, by its logits" in run.stderr
    for command in (("eval", "merged"), ("verify", "merged")):
        run = osrm(*command, cwd=tmp_path)
        assert run.code == 0, run.stderr
    scores = json.loads((tmp_path / "merged/scores.json").read_text())
    assert set(scores["tasks"]) == {"mood", "pair"}
    assert osrm("eval", root / "pair", "--out", "pair.json", cwd=tmp_path).code == 0
    alone = json.loads((tmp_path / "pair.json").read_text())["tasks"]["pair"]["headline"]
    assert scores["tasks"]["pair"]["single"] == pytest.approx(alone)
    run = osrm("calibrate", "merged", cwd=tmp_path)
    assert run.code == 1
    assert "the adapter of 'pair' belongs to another base model than the merge" in run.stderr
    run = osrm(*words, "--calibrate", "--out", "calibrated", cwd=tmp_path)
    assert run.code == 1
    assert "belongs to another base model, to which it cannot be calibrated" in run.stderr
    assert osrm(*words, "--as", "model", "--out", "model", cwd=tmp_path).code == 0
    run = osrm("eval", "model", cwd=tmp_path)
    assert run.code == 0, run.stderr
    again = json.loads((tmp_path / "model/scores.json").read_text())
    assert again["tasks"]["pair"]["headline"] == pytest.approx(scores["tasks"]["pair"]["headline"])


def test_the_recipe_repeats_it(classifiers, tmp_path):
    root, base, _ = classifiers
    paths = [root / "mood", root / "pair"]
    for name in ("one", "two"):
        sources = {"adapters": paths, "method": "distill"} if name == "one" else {"recipe": tmp_path / "one/merge.yaml"}
        options = {"options": {**OPTIONS, "steps": 20}, "model": str(base)} if name == "one" else {}
        merge_adapters(**sources, **options, out=tmp_path / name)
    for file in ("adapter_model.safetensors", "tasks/pair/adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_gpt2_learns_without_an_adapter_of_its_own(classifiers, tiny_model, text_tasks, tmp_path):
    """Its layers store their weights turned, which PEFT has to be told."""
    root, _, wide = classifiers
    base = tiny_model("gpt2")
    result = merge_adapters([root / "score"], "distill", options={**OPTIONS, "samples": 48, "rank": 2}, model=str(base),
                            out=tmp_path / "out")  # fmt: skip
    bare = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    with warnings.catch_warnings(record=True) as said:
        student = PeftModel.from_pretrained(bare, str(tmp_path / "out/tasks/score")).eval()
    assert not [each for each in said if "fan_in_fan_out" in str(each.message)]  # PEFT corrects a wrong one
    teacher = trained_adapters.dense(root / "score", wide, "score")
    rows = texts_of(text_tasks, "score")
    found, wanted = (
        said_by(model, AutoTokenizer.from_pretrained(folder), rows)
        for model, folder in ((student, base), (teacher, wide))
    )
    row = result.summary["distance"]["score"]
    assert distance_in_units("score", found, wanted) == pytest.approx(row["after"], rel=1e-3)
    assert row["after"] < 0.95 * row["before"]
    assert {layer.rank for layer in open_adapter(tmp_path / "out").layers.values()} == {2}


def test_what_cannot_be_learned_from_another_base_is_refused(classifiers, writers, tmp_path):
    root, base, _ = classifiers
    both = [root / "mood", root / "pair"]
    with pytest.raises(OsrmError, match="belongs to base model") as error:
        merge_adapters(both, "distill", out=tmp_path / "out")
    assert "--method distill --base MODEL" in str(error.value.hint)
    with pytest.raises(OsrmError, match="has a weight, but belongs to another base model"):
        merge_adapters(both, "distill", weights={"pair": 0.5}, model=str(base), out=tmp_path / "out")
    texts, small, _, _ = writers
    with pytest.raises(OsrmError, match="cannot be compared") as error:
        merge_adapters([texts / "same", texts / "backwards"], "distill", options={"completions": "given"},
                       model=str(small), out=tmp_path / "out")  # fmt: skip
    assert "--completions given" in str(error.value.hint)
    moved = shutil.copytree(root / "pair", tmp_path / "moved" / "pair")
    settings = json.loads((moved / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(root / "nowhere")
    (moved / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(OsrmError, match=r"is to teach on its own base model: .*nowhere"):
        merge_adapters([root / "mood", moved], "distill", model=str(base), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
