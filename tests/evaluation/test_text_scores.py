"""Scores of text tasks from outside: choices in chats, the metrics of ``task.toml``, sample answers, averages."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from osrm_cli.evaluation.scores import TaskScore, TextAnswers, summarize_scores
from osrm_cli.models.text.backbone import TextBackbone
from tests import text_adapters
from tests.run_cli import osrm

TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] + ' ' + message.content + ' </s> w0 ' }}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
PROMPTS = ["w1 " * 60, "w2 good ", "w3 good ", "w4 good "]
REFERENCES = ['{"a": 1}', '{"a": 1, "b": 2}', '["w1", "w2"]', '{"a": "w3 w4"}']
ANSWERS = ["[bold] w5", '{"a": 1}', '["w1", "w2"]', "w3 w4"]


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write_task(folder: Path, rows: Sequence[dict[str, Any]], toml: str = "") -> None:
    """The task ``talk``, whose splits are the same."""
    task = folder / "tasks" / "talk"
    task.mkdir(parents=True)
    for split in ("train", "dev"):
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if toml:
        (task / "task.toml").write_text(toml)


def choose_by_transformers(model: Any, tokenizer: Any, row: dict[str, Any]) -> tuple[str, str]:
    """The likeliest choice, and the likeliest per byte."""
    prompt = row["messages"][:-1] if "messages" in row else row["prompt"]
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    found = []
    for choice in row["choices"]:
        ids = torch.tensor([[*before, *tokenizer(choice)["input_ids"]]])
        with torch.no_grad():
            likely = model(ids).logits[0, len(before) - 1 : -1].log_softmax(-1)
        found.append(float(likely.gather(1, ids[0, len(before) :, None]).sum()))
    by_byte = [value / len(choice.encode()) for value, choice in zip(found, row["choices"], strict=True)]
    return row["choices"][found.index(max(found))], row["choices"][by_byte.index(max(by_byte))]


@pytest.mark.parametrize("layout", ["prompt and completion", "messages"])
def test_choices_in_chats(layout: str, tiny_writer: Callable[[str], Path], tmp_path: Path) -> None:
    """Only the choice's own tokens count: neither the end token nor what the template puts after it."""
    base = tmp_path / "writer-llama"
    shutil.copytree(tiny_writer("llama"), base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    draw, rows = random.Random(0), []
    for _ in range(12):
        one, two, three = draw.sample(range(10, 60), 3)
        choices = [f"w{one}", f"w{two} w{three}"]
        prompt = [say("user", f"w{one} w3"), say("assistant", "w4"), say("user", f"w{two}")]
        answer = say("assistant", draw.choice(choices))
        chat = {"messages": [*prompt, answer]} if layout == "messages" else {"prompt": prompt, "completion": [answer]}
        rows.append({**chat, "choices": choices, "topic": "x"})
    write_task(tmp_path, rows, 'metrics = ["accuracy", "accuracy_norm"]')
    text_adapters.save(tmp_path / "talk", base, tmp_path / "tasks")
    done = osrm("eval", "talk", "--model", base, cwd=tmp_path)
    assert done.code == 0, done.stderr
    ours = json.loads((tmp_path / "talk" / "scores.json").read_text())["tasks"]["talk"]["metrics"]
    model, tokenizer = text_adapters.dense(tmp_path / "talk", base), AutoTokenizer.from_pretrained(base)
    right = [row["messages"][-1] if "messages" in row else row["completion"][0] for row in rows]
    chosen = [choose_by_transformers(model, tokenizer, row) for row in rows]
    for index, name in enumerate(("accuracy", "accuracy_norm")):
        hits = sum(pair[index] == answer["content"] for pair, answer in zip(chosen, right, strict=True))
        assert ours[name] == pytest.approx(100 * hits / len(rows))
        assert 0 < hits < len(rows)


def test_metrics_of_task_toml_and_sample_answers(
    tiny_writer: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rouge, sacrebleu = pytest.importorskip("rouge_score.rouge_scorer"), pytest.importorskip("sacrebleu")
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(PROMPTS, REFERENCES, strict=True)]
    write_task(tmp_path, rows, 'metrics = ["chrf", "json_f1", "rouge_l"]')
    text_adapters.save(tmp_path / "talk", tiny_writer("llama"), tmp_path / "tasks")
    monkeypatch.setattr(TextBackbone, "generate", lambda *_: ANSWERS)
    done = osrm("eval", "talk", "--model", tiny_writer("llama"), "--predictions", cwd=tmp_path)
    assert done.code == 0, done.stderr
    scores = json.loads((tmp_path / "talk" / "scores.json").read_text())
    row = scores["tasks"]["talk"]
    scorer = rouge.RougeScorer(["rougeL"])
    pairs = list(zip(REFERENCES, ANSWERS, strict=True))
    expected = {
        "chrf": sacrebleu.CHRF().corpus_score(ANSWERS, [REFERENCES]).score,
        "json_f1": 100 * (0 + 2 / 3 + 1 + 0) / 4,
        "rouge_l": 100 * sum(scorer.score(*pair)["rougeL"].fmeasure for pair in pairs) / 4,
    }
    found = {name: row["metrics"][name] for name in expected}
    assert found == pytest.approx(expected)
    assert row["metrics"]["exact_match"] == 25
    assert row["headline"] == pytest.approx(sum(expected.values()) / 3)
    assert (scores["answers"]["talk"], scores["references"]["talk"]) == (ANSWERS, REFERENCES)
    triples = list(zip(PROMPTS, ANSWERS, REFERENCES, strict=True))[:3]
    assert row["samples"] == [{"prompt": one, "answer": two, "reference": three} for one, two, three in triples]
    printed = done.stdout.split("average")[1].splitlines()[1:]
    assert [line for line in printed if line.strip()] == [
        "talk: " + ("w1 " * 60)[:97] + "...",
        "  answer     [bold] w5",
        '  reference  {"a": 1}',
    ]


def test_sample_answers_are_the_model_s(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    base = tiny_writer("llama")
    for task in ("last", "same"):
        text_adapters.save(tmp_path / task, base, completion_tasks)
    assert osrm("merge", "last", "same", cwd=tmp_path).code == 0
    words = ("eval", "merged", "--model", base, "--data", completion_tasks, "--no-single")
    done = osrm(*words, "--predictions", cwd=tmp_path)
    assert done.code == 0, done.stderr
    scores = json.loads((tmp_path / "merged" / "scores.json").read_text())
    for task, row in scores["tasks"].items():
        lines = (completion_tasks / task / "dev.jsonl").read_text().splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines]
        triples = zip(prompts, scores["answers"][task], scores["references"][task], strict=True)
        names = ("prompt", "answer", "reference")
        assert row["samples"] == [dict(zip(names, triple, strict=True)) for triple in triples][:3]
        assert f"{task}: {row['samples'][0]['prompt'].strip()}\n" in done.stdout
    done = osrm(*words, "--no-generate", "--out", "loss.json", cwd=tmp_path)
    assert "answer" not in done.stdout
    assert json.loads((tmp_path / "loss.json").read_text())["tasks"]["same"]["samples"] == []


def text_score(loss: float, single: float | None, base: float | None) -> TaskScore:
    return TaskScore({"loss": loss}, 10.0, text=TextAnswers(), single_loss=single, base_loss=base)


def test_averages_of_shares() -> None:
    """Losses do not add up, shares do; an average is of all tasks or there is none."""
    two = {"a": text_score(2.0, 1.0, 3.0), "b": text_score(1.0, 0.9, 1.9)}
    summary = summarize_scores(two)
    assert [summary["tasks"][task]["loss_ratio"] for task in "ab"] == pytest.approx([50, 90])
    assert [summary["tasks"][task]["kept"] for task in "ab"] == pytest.approx([50, 90])
    assert (summary["average"]["loss_ratio"], summary["average"]["kept"]) == pytest.approx((70, 70))
    without_base = summarize_scores({**two, "c": text_score(1.0, 0.5, None)})["average"]
    assert without_base["loss_ratio"] == pytest.approx((50 + 90 + 50) / 3)
    assert without_base["kept"] is None
    learned_nothing = summarize_scores({**two, "c": text_score(1.0, 2.0, 1.5)})["average"]
    assert learned_nothing["kept"] is None
    without_single = summarize_scores({**two, "c": text_score(1.0, None, 2.0)})["average"]
    assert (without_single["loss_ratio"], without_single["kept"]) == (None, None)
    mixed = summarize_scores({**two, "c": TaskScore({"accuracy": 50.0}, 50.0)})["average"]
    assert not {"loss_ratio", "kept"} & mixed.keys()
