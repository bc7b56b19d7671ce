"""Rows of tasks that are answered with text: layouts, and errors that name file and row."""

import json
from pathlib import Path
from typing import Any

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.loading import load_prompts, load_split, load_texts
from osrm_cli.tasks.task import Task

USER, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}


def write(folder: Path, rows: list[dict[str, Any]], toml: str = "", split: str = "train") -> Path:
    (folder / "talk").mkdir(exist_ok=True)
    (folder / "talk" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if toml:
        (folder / "talk" / "task.toml").write_text(toml)
    return folder


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "a", "completion": "b"}, ("prompt", "completion")),
        ({"prompt": [USER], "completion": [ANSWER]}, ("prompt", "completion")),
        ({"prompt": "a", "completion": "b", "id": 3, "source": "x"}, ("prompt", "completion")),
        ({"prompt": "a", "completion": "b", "category": "x", "score": 3}, ("prompt", "completion")),
        ({"prompt": "a", "completion": "b", "topic": "x", "text": "ab"}, ("prompt", "completion")),
        ({"messages": [USER, ANSWER]}, ("messages",)),
        ({"messages": [USER, ANSWER], "rating": 5}, ("messages",)),
        ({"text": "once upon a time"}, ("text",)),
        ({"text": "once upon a time", "id": 4}, ("text",)),
    ],
)
def test_layouts_that_trl_reads(row: dict[str, Any], columns: tuple[str, ...], tmp_path: Path) -> None:
    data = load_split("talk", write(tmp_path, [row, row]), "train")
    assert data.task == Task("talk", columns, None, ("rouge_l",), kind="generation")
    assert len(data.text_examples) == 2
    assert not data.task.regression
    assert Task.from_dict(data.task.to_dict()) == data.task


def test_a_label_beside_the_text_makes_a_classifier(tmp_path: Path) -> None:
    rows = [{"text": f"word {index}", "label": index % 2} for index in range(40)]
    task = load_split("talk", write(tmp_path, rows), "train").task
    assert not task.is_text
    assert "kind" not in task.to_dict()


@pytest.mark.parametrize("toml", ["", 'label_column = "topic"\ncolumns = ["prompt"]\n'])
def test_a_label_beside_the_prompt_makes_a_classifier(toml: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"word {i}", "completion": f"w{i}", "label": i % 2, "topic": i % 3} for i in range(40)]
    task = load_split("talk", write(tmp_path, rows, toml), "train").task
    assert not task.is_text
    assert task.num_labels == (3 if toml else 2)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "label": 1, "score": 0.5},
        {"messages": [USER, ANSWER], "label": 1},
        {"text": "once upon a time", "label": 1},
        {"text": "once upon a time", "source": "a book"},
    ],
)
def test_kind_in_task_toml_counts_for_more_than_columns(row: dict[str, Any], tmp_path: Path) -> None:
    data = load_split("talk", write(tmp_path, [row], 'kind = "generation"'), "train")
    assert data.task.columns == tuple(name for name in row if name in ("prompt", "completion", "messages", "text"))
    assert data.task.is_text
    assert data.task.metrics == ("rouge_l",)


def test_parts_of_a_chat(tmp_path: Path) -> None:
    (example,) = load_split(
        "talk", write(tmp_path, [{"messages": [USER, ANSWER, USER, ANSWER]}]), "train"
    ).text_examples
    assert example.prompt == (USER, ANSWER, USER)
    assert example.completion == (ANSWER,)
    assert example.all_turns
    assert example.reference == "Hi"


def test_task_toml_says_how_answers_are_judged(tmp_path: Path) -> None:
    toml = (
        'kind = "generation"\nmetrics = ["exact_match", "chrf"]\nmax_new_tokens = 20\nstop = ["\\n"]\nmax_length = 64\n'
    )
    task = load_split("talk", write(tmp_path, [{"prompt": "a", "completion": "b"}], toml), "train").task
    assert (task.metrics, task.max_new_tokens, task.stop, task.max_length) == (
        ("exact_match", "chrf"),
        20,
        ("\n",),
        64,
    )


def test_choices(tmp_path: Path) -> None:
    row = {"prompt": "sky?", "completion": " blue", "choices": [" blue", " green"]}
    data = load_split("talk", write(tmp_path, [row]), "train")
    assert data.text_examples[0].choices == (" blue", " green")
    assert data.task.metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "completion": "b"}, "column 'prompt' holds nothing, expected text"),
        ({"prompt": "a", "completion": "  "}, "column 'completion' holds nothing, expected text"),
        ({"prompt": "a", "completion": None}, "column 'completion' holds nothing, expected text"),
        ({"prompt": "a", "completion": 7}, "column 'completion' holds 7, expected text"),
        ({"prompt": "a"}, "column 'completion' holds nothing, expected text"),
        ({"prompt": "a", "completion": [ANSWER]}, "a string and a list of messages"),
        ({"prompt": [USER], "completion": [USER]}, "'completion' ends with a message of the role 'user'"),
        ({"prompt": [], "completion": [ANSWER]}, "column 'prompt' holds no message"),
        ({"prompt": ["hello"], "completion": [ANSWER]}, "message 1 of 'prompt' is 'hello'"),
        ({"prompt": [{"role": "user"}], "completion": [ANSWER]}, "message 1 of 'prompt' holds nothing"),
        ({"prompt": "a", "completion": "b", "choices": ["c", "d"]}, "the completion is none of the choices"),
        ({"prompt": "a", "completion": "b", "choices": ["b"]}, "expected a list of two or more"),
        ({"prompt": [USER], "completion": [ANSWER], "choices": ["c", "d"]}, "the completion is none of the choices"),
        ({"messages": [USER, ANSWER], "choices": ["c", "d"]}, "the completion is none of the choices"),
    ],
)
def test_bad_row_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"messages": [USER, ANSWER]} if "messages" in row else {"prompt": "a", "completion": "b"}
    if "choices" in row:
        good["choices"] = ["b", "Hi"]
    with pytest.raises(OsrmError, match=message) as caught:
        load_split("talk", write(tmp_path, [good, row]), "train")
    assert "train.jsonl:2" in str(caught.value)


def test_chat_that_does_not_end_with_the_assistant(tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match=r"train.jsonl:1: 'messages' ends with a message of the role 'user'"):
        load_split("talk", write(tmp_path, [{"messages": [USER]}]), "train")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('kind = "generation"\nmetrics = ["f1"]', "'f1' is not a metric for text"),
        ('kind = "poetry"', "kind is 'poetry', expected"),
        ("max_new_tokens = 0", "max_new_tokens is 0, expected a number of tokens"),
    ],
)
def test_task_toml_with_wrong_values(toml: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match=message):
        load_split("talk", write(tmp_path, [{"prompt": "a", "completion": "b"}], toml), "train")


def test_kind_that_the_columns_do_not_have(tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match="expected prompt and completion, messages, or text"):
        load_split("talk", write(tmp_path, [{"question": "a", "answer": "b"}], 'kind = "generation"'), "train")


def test_texts_of_a_task_are_its_rows(tmp_path: Path) -> None:
    data = write(tmp_path, [{"prompt": "a", "completion": "b"}])
    task = load_split("talk", data, "train").task
    assert load_texts(task, data, "train").examples == load_split("talk", data, "train").examples


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "a"}, "a"),
        ({"prompt": "a", "completion": None}, "a"),
        ({"prompt": "a", "completion": "b"}, "a"),
        ({"prompt": [USER]}, (USER,)),
        ({"messages": [USER, ANSWER, USER]}, (USER, ANSWER, USER)),
        ({"messages": [USER, ANSWER]}, (USER,)),
    ],
)
def test_prompts_need_no_answer(row: dict[str, Any], prompt: Any, tmp_path: Path) -> None:
    (example,) = load_prompts("talk", write(tmp_path, [row]), "train").text_examples
    assert (example.prompt, example.completion, example.all_turns) == (prompt, "", False)


def test_prompts_with_their_answers(tmp_path: Path) -> None:
    data = write(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert load_prompts("talk", data, "train", answered=True) == load_split("talk", data, "train")
    with pytest.raises(OsrmError, match="has the columns prompt, expected prompt and completion"):
        load_prompts("talk", write(tmp_path, [{"prompt": "a"}]), "train", answered=True)
    with pytest.raises(OsrmError, match="'sst2' in hub is not answered with text"):
        load_prompts("sst2", "hub", "train")
