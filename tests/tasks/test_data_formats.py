"""Data as people have it: what a task's files may look like, and what is refused with the line that mends it."""

import contextlib
import csv
import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.description import describe_task_split, format_task_description
from osrm_cli.tasks.loading import list_splits, list_tasks, load_split, load_texts

TEXTS = [f"text number {i}" for i in range(12)]


def write_csv(folder, header, rows, name="train.csv", task="mine"):
    (folder / task).mkdir(exist_ok=True)
    with (folder / task / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder


def write_jsonl(folder, rows, name="train.jsonl", task="mine"):
    (folder / task).mkdir(exist_ok=True)
    (folder / task / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def declare(folder, toml, task="mine"):
    (folder / task / "task.toml").write_text(toml, encoding="utf-8")


def labelled(labels, **more):
    return [{"text": text, **more, "label": label} for text, label in zip(TEXTS, labels, strict=False)]


def refused(folder, split="train", task="mine"):
    with pytest.raises(OsrmError) as error:
        load_split(task, folder, split)
    return str(error.value).replace(f"{folder}/{task}/", ""), error.value.hint or ""


def warnings_of(data):
    return [warning.replace(data.source, "FILE") for warning in data.warnings]


def test_columns_are_found_whatever_their_case(tmp_path):
    write_csv(tmp_path, ["Text", "Label"], [["a", "x"], ["b", "y"]])
    write_csv(tmp_path, ["text", "LABEL"], [["c", "y"]], "dev.csv")
    declare(tmp_path, 'columns = ["TEXT"]\n')
    assert [example.texts for example in load_split("mine", tmp_path, "dev").examples] == [("c",)]
    assert load_split("mine", tmp_path, "dev").labels == [1]


def test_whole_numbers_with_a_point_are_classes(tmp_path):
    data = load_split(
        "mine", write_csv(tmp_path, ["text", "label"], zip(TEXTS, ["1.0", "2.0"] * 6, strict=True)), "train"
    )
    assert data.task.labels == (1, 2)
    assert data.labels == [0, 1] * 6
    (warning,) = warnings_of(data)
    assert 'say labels = "float"' in warning
    declare(tmp_path, 'labels = "float"\n')
    data = load_split("mine", tmp_path, "train")
    assert (data.task.labels, data.labels, data.warnings) == (None, [1.0, 2.0] * 6, ())
    declare(tmp_path, 'labels = ["2.0", "1.0"]\n')
    assert load_split("mine", tmp_path, "train").labels == [1, 0] * 6


def test_names_that_are_numbers_are_never_positions(tmp_path):
    write_jsonl(tmp_path, labelled([0, 1, "0", "1"]))
    declare(tmp_path, 'columns = "text"\nlabels = ["1", "0"]\n')
    assert load_split("mine", tmp_path, "train").labels == [1, 0, 1, 0]


@pytest.mark.parametrize("sign", [None, "", "-", " "])
def test_rows_without_a_label_are_left_out(tmp_path, sign):
    data = load_split("mine", write_jsonl(tmp_path, labelled(["a", sign, "b", sign, "a"])), "train")
    assert data.task.labels == ("a", "b")
    assert [example.texts[0] for example in data.examples] == [TEXTS[0], TEXTS[2], TEXTS[4]]
    assert warnings_of(data) == ["FILE: left out 2 of 5 rows without label, the first at FILE:2"]


def test_minus_one_beside_three_classes_is_no_label(tmp_path):
    write_jsonl(tmp_path, labelled([0, 1, -1, 2, -1]))
    data = load_split("mine", tmp_path, "train")
    assert (data.task.labels, data.labels) == ((0, 1, 2), [0, 1, 2])
    assert "say labels = [-1, 0, 1, 2]" in data.warnings[0]
    assert "left out 2 of 5 rows without label" in data.warnings[1]
    declare(tmp_path, "labels = [-1, 0, 1, 2]\n")
    data = load_split("mine", tmp_path, "train")
    assert (data.labels, data.warnings) == ([1, 2, 0, 3, 0], ())


def test_minus_one_beside_two_classes_is_not_guessed(tmp_path):
    message, hint = refused(write_jsonl(tmp_path, labelled([0, 1, -1])))
    assert message.startswith("train.jsonl: the labels are -1, 0 and 1")
    assert "labels = [-1, 0, 1] or labels = [0, 1]" in hint
    declare(tmp_path, "labels = [0, 1]\n")
    assert load_split("mine", tmp_path, "train").labels == [0, 1]
    declare(tmp_path, "labels = [-1, 0, 1]\n")
    assert load_split("mine", tmp_path, "train").labels == [1, 2, 0]
    assert load_split("two", write_jsonl(tmp_path, labelled([-1, 1, 1]), task="two"), "train").task.labels == (-1, 1)


def test_minus_one_of_named_classes_is_no_label(tmp_path):
    write_jsonl(tmp_path, [{"sentence": "x", "label": label} for label in (0, -1, 1)], task="sst2")
    assert load_split("sst2", tmp_path, "train").labels == [0, 1]


def test_scores_may_be_missing_and_minus_one(tmp_path):
    data = load_split("mine", write_jsonl(tmp_path, labelled([0.5, -1, None])), "train")
    assert data.labels == [0.5, -1.0]
    assert len(data.warnings) == 1


def test_rows_without_text_are_left_out(tmp_path):
    rows = [{"a": "x", "b": "y", "label": 0}, {"a": None, "b": "y", "label": 1}, {"a": " ", "b": None, "label": 1}]
    data = load_split("mine", write_jsonl(tmp_path, rows), "train")
    assert [example.texts for example in data.examples] == [("x", "y"), ("", "y")]
    assert warnings_of(data) == ["FILE: left out 1 of 3 rows without text, the first at FILE:3"]


def test_numbers_are_text_where_the_column_is(tmp_path):
    rows = labelled([0, 1, 0])
    rows[1]["text"] = 12345
    assert load_split("mine", write_jsonl(tmp_path, rows), "train").examples[1].texts == ("12345",)
    write_csv(tmp_path, ["text", "label"], [["007", "a"], ["12", "b"]], task="digits")
    assert [each.texts[0] for each in load_split("digits", tmp_path, "train").examples] == ["007", "12"]


def test_identifiers_and_the_labels_name_are_no_text(tmp_path):
    names = ["negative", "positive"]
    rows = [
        {"pairID": f"{i}.jpg", "Unnamed: 0": f"n{i}", "user_id": f"u{i}", "text": text, "mood": names[i % 2]}
        for i, text in enumerate(TEXTS)
    ]
    rows = [{**row, "label": i % 2, "label_text": names[i % 2]} for i, row in enumerate(rows)]
    data = load_split("mine", write_jsonl(tmp_path, rows), "train")
    assert data.task.columns == ("text",)
    assert [warning.partition(": ")[2] for warning in data.warnings] == [
        f"column '{name}' repeats the label and was left out" for name in ("mood", "label_text")
    ]


def test_known_names_win_among_many_text_columns(tmp_path):
    rows = [{"date": f"day {i}", "user": f"at {i}", "text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    data = load_split("mine", write_jsonl(tmp_path, rows), "train")
    assert data.task.columns == ("text",)
    assert "text columns left out: date, user" in data.warnings[0]
    rows = [{"genre": f"g {i}", "premise": f"p {i}", "hypothesis": "h", "label": i % 3} for i in range(9)]
    assert load_split("nli", write_jsonl(tmp_path, rows, task="nli"), "train").task.columns == ("premise", "hypothesis")


def test_what_is_refused_names_the_line_that_mends_it(tmp_path):
    write_csv(tmp_path, ["v1", "v2"], zip(["ham", "spam"] * 6, TEXTS, strict=True))
    message, hint = refused(tmp_path)
    assert message.endswith("found: v1, v2")
    assert hint == 'say label_column = "v1" and columns = ["v2"] in a task.toml beside it'
    declare(tmp_path, 'label_column = "v1"\ncolumns = ["v2"]\n')
    assert load_split("mine", tmp_path, "train").task.labels == ("ham", "spam")
    write_csv(
        tmp_path, ["title", "body", "city", "label"], [[t, t, "Oslo", i % 2] for i, t in enumerate(TEXTS)], task="b"
    )
    assert 'columns = ["NAME"] or ["FIRST", "SECOND"] such as ["title", "body"]' in refused(tmp_path, task="b")[1]
    declare(tmp_path, 'columns = ["title", "body", "city"]\n', task="b")
    message, hint = refused(tmp_path, task="b")
    assert message == "task.toml: columns is ['title', 'body', 'city'], expected one or two column names"
    assert "join the others into one column" in hint
    write_csv(tmp_path, ["1", "it is a charming journey"], [["0", "dull"]], task="c")
    assert "write the columns' names into the first line" in refused(tmp_path, task="c")[1]
    (tmp_path / "c" / "train.csv").write_text("text,label\na, b,1\n")
    assert 'put texts that hold a comma in "quotation marks"' in refused(tmp_path, task="c")[1]
    (tmp_path / "c" / "train.csv").unlink()
    (tmp_path / "c" / "train.tsv").write_text("text\tlabel\na\tb\t1\n")
    assert "a text of a tsv file cannot hold a tab" in refused(tmp_path, task="c")[1]


def test_a_share_of_train_is_dev(tmp_path):
    write_csv(tmp_path, ["text", "label"], zip(TEXTS, "ab" * 6, strict=True), "reviews.csv")
    assert list_tasks(tmp_path) == ["mine"]
    assert list_splits("mine", tmp_path) == ("train",)
    assert "--split-dev 0.1 takes a tenth of train" in refused(tmp_path, "dev")[1]
    declare(tmp_path, "split_dev = 0.25\n")
    assert list_splits("mine", tmp_path) == ("train", "dev")
    train, dev = (load_split("mine", tmp_path, split) for split in ("train", "dev"))
    assert (len(train.examples), len(dev.examples)) == (9, 3)
    assert sorted([*train.examples, *dev.examples], key=lambda each: TEXTS.index(each.texts[0])) == [
        *load_split(
            "whole", write_csv(tmp_path, ["text", "label"], zip(TEXTS, "ab" * 6, strict=True), task="whole"), "train"
        ).examples
    ]
    assert load_split("mine", tmp_path, "dev", limit=2).examples == dev.examples[:2]
    assert [each.texts for each in load_texts(train.task, tmp_path, "train").examples] == [
        e.texts for e in train.examples
    ]
    assert [example.texts[0] for example in dev.examples] != TEXTS[:3]
    declare(tmp_path, "split_dev = 0.25\n", task="whole")
    write_csv(tmp_path, ["text", "label"], [["other", "a"]], "dev.csv", task="whole")
    assert [e.texts for e in load_split("whole", tmp_path, "dev").examples] == [("other",)], "a file of its own wins"
    assert len(load_split("whole", tmp_path, "train").examples) == len(TEXTS)


@pytest.mark.parametrize("value", ["0", "1", "1.5", "true", '"0.1"'])
def test_a_share_is_between_none_and_all(tmp_path, value):
    write_csv(tmp_path, ["text", "label"], zip(TEXTS, "ab" * 6, strict=True))
    declare(tmp_path, f"split_dev = {value}\n")
    assert "split_dev is" in refused(tmp_path)[0]
    assert "expected the share of train that is dev" in refused(tmp_path)[0]


@pytest.mark.parametrize("name", ['"><img src=x>', "a&b", "my reviews", "-x", ".hidden", "line\nbreak"])
def test_a_task_whose_name_later_commands_refuse_is_refused_at_once(tmp_path, name):
    write_csv(tmp_path, ["text", "label"], [["a", 0], ["b", 1]], task=name)
    with pytest.raises(OsrmError, match="cannot be the name of a task"):
        load_split(name, tmp_path, "train")


def test_first_rows_of_a_sorted_file_are_warned_of(tmp_path):
    write_csv(tmp_path, ["text", "label"], zip(TEXTS * 2, "a" * 12 + "b" * 12, strict=True))
    assert not load_split("mine", tmp_path, "train").warnings
    (warning,) = warnings_of(load_split("mine", tmp_path, "train", limit=20))
    assert warning.startswith("FILE is sorted by label: its first 20 rows do not stand for all")
    assert load_split("mine", tmp_path, "train", limit=10).warnings, "one class only"
    write_csv(tmp_path, ["text", "label"], zip(TEXTS * 2, "ab" * 12, strict=True), task="mixed")
    assert not load_split("mixed", tmp_path, "train", limit=20).warnings


def test_the_description_says_what_was_understood(tmp_path):
    write_csv(
        tmp_path,
        ["Review", "Stars"],
        zip([f'say "{t}" \x7f ü' for t in TEXTS], ["bad", "good", "good"] * 4, strict=True),
    )
    described = describe_task_split(data := load_split("mine", tmp_path, "train"))
    assert described["labels"] == {"bad": 4, "good": 8}
    assert described["kind"] == "classification"
    assert described["first"] == {"Review": data.examples[0].texts[0], "Stars": "bad"}
    lines = format_task_description(described).splitlines()
    assert lines[0].endswith("train.csv, classification")
    assert "labels in Stars: bad 4, good 8" in lines[1]
    declare(tmp_path, described["task_toml"])
    again = load_split("mine", tmp_path, "train")
    assert (again.task, again.examples) == (data.task, data.examples), "the task.toml says the same"


def test_the_description_of_scores(tmp_path):
    described = describe_task_split(load_split("mine", write_jsonl(tmp_path, labelled([0.5, 4.0, 1.0])), "train"))
    assert (described["kind"], described["labels"]) == ("regression", {"lowest": 0.5, "highest": 4.0})
    fields = tomllib.loads(described["task_toml"])
    assert fields == {
        "columns": ["text"],
        "label_column": "label",
        "labels": "float",
        "metrics": ["pearson", "spearman"],
    }


PIECES = st.lists(
    st.sampled_from(
        [
            *'",;\t\n\r|\\ \0[]{}:-+.01',
            "text",
            "label",
            "null",
            "true",
            "1e999",
            "9" * 5000,
            "\\ud800",
            "é",
            "NaN",
            "a b",
        ]
    )
    | st.text(max_size=3),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(["csv", "tsv", "json", "jsonl", "toml", "parquet"]),
    pieces=PIECES,
    header=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-16", "cp1252"]),
)
def test_nothing_but_our_own_error(tmp_path_factory, kind, pieces, header, encoding):
    folder = tmp_path_factory.mktemp("any")
    begin = {"csv": "text,label\n", "tsv": "text\tlabel\n", "json": '[{"text": ', "jsonl": '{"text": "a", "label": '}
    content = (begin.get(kind, "") if header else "") + "".join(pieces)
    write_csv(folder, ["text", "label"], [["a", "x"], ["b", "y"]])
    name = "task.toml" if kind == "toml" else f"dev.{kind}"
    (folder / "mine" / name).write_bytes(content.encode(encoding, "ignore"))
    for split in ("train", "dev"):
        with contextlib.suppress(OsrmError):
            format_task_description(describe_task_split(load_split("mine", folder, split)))
    if kind != "toml":
        (folder / "mine" / "train.csv").unlink()
        (folder / "mine" / name).rename(folder / "mine" / f"train.{kind}")
        with contextlib.suppress(OsrmError):
            format_task_description(describe_task_split(load_split("mine", folder, "train")))


@pytest.mark.parametrize(
    "rows",
    [
        labelled([10**400, 1]),
        labelled(["9" * 5000, "1"]),
        labelled(["\ud800", "b"]),
        [{"text": "a", "label\ud800": 1}],
    ],
    ids=["integer", "digits", "surrogate", "surrogate name"],
)
def test_values_beyond_all_bounds_are_refused(tmp_path, rows):
    assert refused(write_jsonl(tmp_path, rows))[0].startswith("train.jsonl:")


def test_pairs_of_a_text_and_its_label(tmp_path):
    (tmp_path / "mine").mkdir()
    rows = [[text, "ab"[i % 2]] for i, text in enumerate(TEXTS)]
    (tmp_path / "mine" / "train.json").write_text(json.dumps(rows))
    data = load_split("mine", tmp_path, "train", limit=1)
    assert (data.task.columns, data.task.labels, data.labels) == (("text",), ("a", "b"), [0])
