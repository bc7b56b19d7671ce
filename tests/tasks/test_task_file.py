import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.parsing import parse_number
from osrm_cli.tasks.task import Task


def write(folder, task="mine", **files):
    """``<folder>/<task>/<split>.jsonl`` from lists of rows, ``<split>.csv`` from text, and ``task.toml``."""
    (folder / task).mkdir(exist_ok=True)
    for name, content in files.items():
        if name == "toml":
            (folder / task / "task.toml").write_text(content, encoding="utf-8")
        elif isinstance(content, str):
            (folder / task / f"{name}.csv").write_text(content, encoding="utf-8")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in content)
            (folder / task / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def rows(*labels, column="label"):
    return [{"text": f"text {i}", column: label} for i, label in enumerate(labels)]


def refused(folder, split="train", task="mine", limit=None):
    with pytest.raises(OsrmError) as error:
        load_split(task, folder, split, limit)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(folder / task) + "/", ""), error.value.hint or ""


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["no", "yes", "no"], ("no", "yes"), [0, 1, 0]),
        ([7, -3, 7], (-3, 7), [1, 0, 1]),
        (["10", "9", "10"], (9, 10), [1, 0, 1]),
        ([True, False, True], (0, 1), [1, 0, 1]),
        ([0.0, 1.0, 1], (0, 1), [0, 1, 1]),
        (["1.0", "2.0", "1.0"], (1, 2), [0, 1, 0]),
        ([0.0, 1.5, 1], None, [0.0, 1.5, 1.0]),
        (["0.5", "-1e-3", "7"], None, [0.5, -0.001, 7.0]),
        (["1_0", "x", "x"], ("1_0", "x"), [0, 1, 1]),
        (["good ", "bad", " good"], ("bad", "good"), [1, 0, 1]),
    ],
)
def test_the_kind_of_label_is_inferred(tmp_path, labels, classes, expected):
    data = load_split("mine", write(tmp_path, train=rows(*labels)), "train")
    assert data.task.labels == classes
    assert data.labels == expected
    assert data.task.regression == (classes is None)
    assert data.task.num_labels == (1 if classes is None else len(classes))
    assert data.task.metrics == (("pearson", "spearman") if classes is None else ("accuracy",))
    assert {type(label) for label in data.labels} == {float if classes is None else int}


@pytest.mark.parametrize(
    "column", ["label", "labels", "score", "target", "class", "Label", "gold_label", "Sentiment", " y"]
)
def test_the_label_column_is_found(tmp_path, column):
    data = load_split("mine", write(tmp_path, train=rows("b", "a", column=column)), "train")
    assert data.task.columns == ("text",)
    assert data.labels == [1, 0]


def test_csv_and_jsonl_tell_the_same_task(tmp_path):
    records = [{"idx": i, "first": f"a {i}", "second": f"b {i}", "year": 2000 + i, "score": i / 4} for i in range(4)]
    lines = [",".join(map(str, record.values())) for record in records]
    write(tmp_path, "plain", train=records)
    write(tmp_path, "table", train="\n".join([",".join(records[0]), *lines]))
    plain, table = (load_split(name, tmp_path, "train") for name in ("plain", "table"))
    assert plain.task.columns == table.task.columns == ("first", "second")
    assert plain.examples == table.examples
    assert plain.sha256 == table.sha256


def test_dev_takes_its_classes_from_train(tmp_path):
    write(tmp_path, train=rows("c", "a", "b"), dev=rows("b", "b"))
    assert load_split("mine", tmp_path, "dev").labels == [1, 1]
    assert load_split("mine", tmp_path, "dev", limit=1).task == load_split("mine", tmp_path, "train").task
    write(tmp_path, dev=rows("b", "d"))
    message, hint = refused(tmp_path, "dev")
    assert message == "dev.jsonl:2: label 'd' is out of range, expected one of: a, b, c"
    assert "task.toml" in hint
    (tmp_path / "mine" / "train.jsonl").unlink()
    assert "no train.* to infer the task from" in refused(tmp_path, "dev")[0]


def test_a_limit_does_not_narrow_the_classes(tmp_path):
    data = load_split("mine", write(tmp_path, train=rows("b", "b", "a")), "train", limit=2)
    assert data.task.labels == ("a", "b")
    assert data.labels == [1, 1]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([{"text": "a", "colour": 1}], "train.jsonl has no label column, expected one of label, labels, gold_label"),
        ([{"text": "a", "topic": 1, "rating": 2}], "train.jsonl has no label column, expected one of label"),
        ([{"a": "x", "b": "y", "c": "z", "label": 1}], "train.jsonl has 3 text columns, expected one or two: a, b, c"),
        ([{"a": 1, "idx": "x", "label": 1}], "train.jsonl has 0 text columns, expected one or two: a, idx, label"),
        (rows(1, 1), "train.jsonl has 1 different labels in column 'label', expected 2 to 200"),
        (rows(*range(201)), "train.jsonl has 201 different labels in column 'label', expected 2 to 200"),
        (rows(*map(str, range(201))), "train.jsonl has 201 different labels"),
        (rows("a", ["b"]), "train.jsonl:2: the label is ['b'], expected a class or a number"),
        (rows(-1, 0, 1), "train.jsonl: the labels are -1, 0 and 1, of which -1 may be a class"),
        (rows(*map(str, range(21))), "train.jsonl: no two rows have the same label in column 'label'"),
        (rows(0.5, float("nan")), "train.jsonl:2: the label is nan, expected a finite number"),
        (rows("0.5", "inf"), "train.jsonl:2: the label is inf, expected a finite number"),
        (rows("0.5", "n/a"), "train.jsonl:2: the label is 'n/a', but line 1 has '0.5'"),
        (rows("a", "b", 1), "train.jsonl:3: the label is 1, but line 1 has 'a'"),
        ([{"text": ["a"], "label": i} for i in (0, 1)], "train.jsonl:1: column 'text' holds ['a'], expected text"),
    ],
)
def test_what_cannot_be_inferred_is_not_guessed(tmp_path, train, said):
    message, hint = refused(write(tmp_path, train=train))
    assert message.startswith(said)
    if ":" not in said.partition(" ")[0]:
        assert "task.toml" in hint


@pytest.mark.parametrize(
    ("dev", "said"),
    [
        ([{"label": "a"}], "dev.jsonl has no column 'text', found: label"),
        ([{"text": "x"}], "dev.jsonl has no column 'label', found: text"),
        ([*rows("a"), {"text": True, "label": "a"}], "dev.jsonl:2: column 'text' holds True, expected text"),
        ([*rows("a"), {"text": ["x"], "label": "a"}], "dev.jsonl:2: column 'text' holds ['x'], expected text"),
        ([{"text": " ", "label": "a"}], "dev.jsonl: no row has text and label"),
        ([{"text": "\ud800", "label": "a"}], "dev.jsonl:1: column 'text' holds half a surrogate pair"),
        (rows("a", 0), "dev.jsonl:2: label 0 is out of range, expected one of: a, b"),
        (rows("a", {"b": 1}), "dev.jsonl:2: label {'b': 1} is out of range"),
        (rows("a" * 99), f"dev.jsonl:1: label '{'a' * 36}... is out of range"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, dev, said):
    assert refused(write(tmp_path, train=rows("a", "b"), dev=dev), "dev")[0].startswith(said)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("nan", "label nan is not a finite number"),
        (float("inf"), "label inf is not a finite number"),
        ("high", "label 'high' is not a number, expected a score"),
        (1e308, "label 1e+308 is too large for a model's single precision, expected at most 1e+15 in size"),
        ("-2e15", "label '-2e15' is too large for a model's single precision, expected at most 1e+15 in size"),
        ([], "label [] is not a number, expected a score"),
    ],
)
def test_a_bad_score_is_named_with_its_line(tmp_path, bad, said):
    write(tmp_path, train=rows(0.5, 1.5), dev=rows(0.5, 2, bad))
    assert refused(tmp_path, "dev")[0] == f"dev.jsonl:3: {said}"


@pytest.mark.parametrize("none", [-1, "-1", None, "", "absent"])
def test_only_test_may_lack_all_labels(tmp_path, none):
    bare = [{"text": "x"}, {"text": "y"}] if none == "absent" else rows(none, none)
    write(tmp_path, train=rows("a", "b"), dev=bare, test=bare)
    data = load_split("mine", tmp_path, "test")
    assert [example.label for example in data.examples] == [None, None]
    with pytest.raises(OsrmError, match="has no labels to score against"):
        _ = data.labels
    assert refused(tmp_path, "dev")[0].startswith("dev.jsonl")
    write(tmp_path, test=[*rows("a"), *bare])
    data = load_split("mine", tmp_path, "test")
    assert data.labels == [0]
    assert [warning.partition(": ")[2] for warning in data.warnings] == [
        f"left out 2 of 3 rows without label, the first at {tmp_path / 'mine' / 'test.jsonl'}:2"
    ]


def test_a_negative_score_in_a_labelled_test_split_stays(tmp_path):
    write(tmp_path, train=rows(-1.0, 1.5), test=rows(-1.0, 0.5))
    assert load_split("mine", tmp_path, "test").labels == [-1.0, 0.5]


def test_task_toml_overrides_what_would_be_inferred(tmp_path):
    toml = """
        columns = ["question", "answer"]
        label_column = "verdict"
        labels = ["wrong", "right"]
        metrics = ["f1", "accuracy"]
        max_length = 64
    """
    dev = [{"question": "q", "answer": "a", "note": "n", "verdict": verdict} for verdict in ("right", 0, "1")]
    data = load_split("mine", write(tmp_path, toml=toml, dev=dev), "dev")
    assert data.task == Task("mine", ("question", "answer"), ("wrong", "right"), ("f1", "accuracy"), 64)
    assert data.examples[0].texts == ("q", "a")
    assert data.labels == [1, 0, 1], "no training rows needed; names and their positions both count"


def test_task_toml_may_say_only_a_part(tmp_path):
    write(tmp_path, "one", train=rows(0, 1, 5), toml='labels = "float"\nmetric = "pearson"\n')
    data = load_split("one", tmp_path, "train")
    assert data.task == Task("one", ("text",), None, ("pearson",))
    assert data.labels == [0.0, 1.0, 5.0]
    write(tmp_path, "two", train=[{"a": "x", "b": "y", "c": "z", "label": i} for i in (0, 1)], toml='columns = "b"')
    assert load_split("two", tmp_path, "train").task == Task("two", ("b",), (0, 1), ("accuracy",))
    write(tmp_path, "three", dev=rows(30, 10, column="score"), toml='columns = "text"\nlabels = [30, 20, 10]')
    assert load_split("three", tmp_path, "dev").labels == [0, 2], "the order is the user's"


def test_whole_number_classes_are_values_never_positions(tmp_path):
    write(tmp_path, dev=rows(10, 0), toml='columns = "text"\nlabels = [10, 20]')
    assert refused(tmp_path, "dev")[0] == "dev.jsonl:2: label 0 is out of range, expected one of: 10, 20"


def test_a_glue_task_obeys_task_toml(tmp_path):
    write(tmp_path, "sst2", train=[{"sentence": "x", "label": 1}], toml="max_length = 32")
    task = load_split("sst2", tmp_path, "train").task
    assert (task.labels, task.metrics, task.max_length) == (("negative", "positive"), ("accuracy",), 32)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("colums = 1", "task.toml: unknown key 'colums'"),
        ('metric = "f1"\nmetrics = "f1"', "task.toml: unknown key 'metric'"),
        ("columns = [", "task.toml is not a TOML file"),
        ("columns = []", "task.toml: columns is [], expected one or two column names"),
        ('columns = ["a", "b", "c"]', "task.toml: columns is ['a', 'b', 'c'], expected one or two column names"),
        ('columns = ["a", "a"]', "task.toml: columns is ['a', 'a'], expected one or two"),
        ("columns = [1]", "task.toml: columns is [1], expected one or two"),
        ("label_column = 1", "task.toml: label_column is 1, expected a column name"),
        ('labels = "int"', "task.toml: labels is 'int', expected two or more classes, or \"float\""),
        ('labels = ["a"]', "task.toml: labels is ['a'], expected two or more"),
        ('labels = ["a", "a"]', "task.toml: labels is ['a', 'a'], expected two or more"),
        ('labels = ["a", 1]', "task.toml: labels is ['a', 1], expected two or more"),
        ("labels = [[1], [2]]", "task.toml: labels is [[1], [2]], expected two or more"),
        ("max_length = 0", "task.toml: max_length is 0, expected a number of tokens"),
        ("max_length = true", "task.toml: max_length is True, expected a number of tokens"),
        ('metrics = "bleu"', "task.toml: 'bleu' is not a metric for classes"),
        ('metrics = ["accuracy", "pearson"]', "task.toml: 'pearson' is not a metric for classes"),
        ('labels = "float"\nmetrics = "f1"', "task.toml: 'f1' is not a metric for regression"),
        ('label_column = "stars"', "train.jsonl has no label column, expected 'stars', found: text, label"),
    ],
)
def test_a_bad_task_toml_is_named(tmp_path, toml, said):
    assert refused(write(tmp_path, train=rows(0, 1), toml=toml))[0].startswith(said)


@settings(deadline=None, max_examples=100)
@given(st.integers() | st.floats(allow_nan=False))
def test_a_number_survives_as_a_string(value):
    assert parse_number(str(value)) == parse_number(value) == value
    assert type(parse_number(str(value))) is type(value)


@pytest.mark.parametrize(
    "word", ["", " ", "one", "1_000", "0x10", "1,5", "٣", "infinite", "nano", "--1", "1e", None, [1]]
)
def test_no_number(word):
    assert parse_number(word) is None
