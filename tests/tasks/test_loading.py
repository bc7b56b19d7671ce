import json
import subprocess
import sys
from pathlib import Path

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.glue import GLUE
from osrm_cli.tasks.loading import draw_examples, list_splits, list_tasks, load_split, load_texts
from osrm_cli.tasks.task import Example, Task, TaskSplit

REAL = Path(__file__).parents[3] / "shared" / "data" / "glue"
SIZES = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "rte": (2490, 277),
    "stsb": (5749, 1500),
    "qnli": (9999, 5463),
    "mnli": (9999, 9815),
    "qqp": (9999, 7600),
}


def write(folder, task, split, rows, suffix="jsonl"):
    (folder / task).mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / task / f"{split}.{suffix}").write_text(text, encoding="utf-8")


def refused(*arguments):
    with pytest.raises(OsrmError) as error:
        load_split(*arguments)
    return str(error.value), error.value.hint


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/glue")
@pytest.mark.parametrize("name", GLUE)
def test_real_glue(name):
    for split, size in zip(("train", "dev"), SIZES[name], strict=True):
        data = load_split(name, REAL, split)
        assert len(data.examples) == size
        assert {len(example.texts) for example in data.examples} == {len(GLUE[name]["columns"])}
        if name == "stsb":
            assert min(data.labels) == 0.0
            assert max(data.labels) == 5.0
        else:
            assert set(data.labels) == set(range(data.task.num_labels))
    assert list_tasks(REAL) == sorted(GLUE)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/glue")
def test_real_glue_is_inferred_as_glue_has_it(tmp_path):
    for name in ("cola", "mrpc", "rte", "stsb"):
        (tmp_path / f"my-{name}").symlink_to(REAL / name)
        own, theirs = load_split(f"my-{name}", tmp_path, "dev"), load_split(name, REAL, "dev")
        assert own.task.columns == theirs.task.columns
        assert own.task.num_labels == theirs.task.num_labels
        assert own.examples == theirs.examples


def test_glue_rows_may_hold_codes_or_names(tmp_path):
    write(tmp_path, "rte", "train", [{"sentence1": "a", "sentence2": "b", "label": i} for i in (0, 1)])
    write(tmp_path, "rte", "dev", [{"sentence1": "a", "sentence2": "b", "label": "not_entailment"}])
    assert load_split("rte", tmp_path, "train").labels == [0, 1]
    assert load_split("rte", tmp_path, "dev").labels == [1]
    write(tmp_path, "rte", "dev", [{"sentence1": "a", "sentence2": "b", "label": 2}])
    message, hint = refused("rte", tmp_path, "dev")
    path = tmp_path / "rte" / "dev.jsonl"
    assert message == f"{path}:1: label 2 is out of range, expected one of: 0, 1, entailment, not_entailment"
    assert "labels = [...]" in hint


def test_mnli_has_two_dev_splits(tmp_path):
    for split, label in (("train", 0), ("dev_matched", 1), ("validation_mismatched", 2), ("test_matched", -1)):
        write(tmp_path, "mnli", split, [{"premise": "p", "hypothesis": "h", "label": label}])
    assert list_splits("mnli", tmp_path) == ("train", "dev_matched", "dev_mismatched", "test_matched")
    assert load_split("mnli", tmp_path, "dev").labels == [1]
    assert load_split("mnli", tmp_path, "dev_mismatched").labels == [2]
    assert load_split("mnli", tmp_path, "test").examples[0].label is None
    write(tmp_path, "mnli", "dev", [{"premise": "p", "hypothesis": "h", "label": 0}])
    assert load_split("mnli", tmp_path, "dev").labels == [0]


def test_names(tmp_path):
    assert list_tasks("hub") == list(GLUE)
    assert len(list_tasks("mini")) == 8
    (tmp_path / "notes").mkdir()
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(OsrmError, match="holds no tasks"):
        list_tasks(tmp_path)
    write(tmp_path, "b", "test", [{}])
    write(tmp_path, "a", "train", [{}])
    assert list_tasks(tmp_path) == ["a", "b"]
    with pytest.raises(OsrmError, match="no data folder"):
        list_tasks(tmp_path / "absent")


def test_an_unknown_task_names_the_nearest_first():
    message, hint = refused("SST-2", "hub", "train")
    assert message == "unknown task 'SST-2' in hub"
    assert hint.startswith("there are: sst2, ")
    assert sorted(hint.removeprefix("there are: ").split(", ")) == sorted(GLUE)


def test_an_unknown_task_is_no_path_out_of_the_folder(tmp_path):
    write(tmp_path, "outside", "train", [{}])
    write(tmp_path / "outside", "inside", "train", [{}])
    assert "unknown task '../outside'" in refused("../outside", tmp_path / "outside", "train")[0]


def test_an_unknown_split_names_the_known(tmp_path):
    write(tmp_path, "sst2", "train", [{}])
    message, hint = refused("sst2", tmp_path, "dev")
    assert message == f"task 'sst2' in {tmp_path} has no split 'dev'"
    assert hint == "there are: train; --split-dev 0.1 takes a tenth of train"
    assert refused("sst2", tmp_path, "test")[1] == "there are: train"
    assert refused("cola", "hub", "dev_matched")[1] == "there are: train, dev, test"
    assert refused("mini-mood", "mini", "test")[1] == "there are: train, dev"


@pytest.mark.parametrize("name", ["mini-mood", "mini-similarity", "mini-inference"])
def test_mini(name):
    train, dev = (load_split(name, "mini", split) for split in ("train", "dev"))
    assert train.task == dev.task
    assert len(load_split(name, "mini", "train", limit=7).examples) == 7
    assert train.examples[:7] == load_split(name, "mini", "train", limit=7).examples
    if not train.task.regression:
        assert set(train.labels) == set(range(train.task.num_labels))


FILL_CACHE = """
from pathlib import Path
from datasets import ClassLabel, DatasetInfo, Features, SplitDict, SplitInfo, Value, config
from datasets.arrow_writer import ArrowWriter

folder = Path(config.HF_DATASETS_CACHE, "nyu-mll___glue", "mnli", "0.0.0", "0" * 40)
folder.mkdir(parents=True)
label = ClassLabel(names=["entailment", "neutral", "contradiction"])
features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": label, "idx": Value("int32")})
splits = SplitDict(dataset_name="glue")
for split in ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"):
    with ArrowWriter(path=str(folder / f"glue-{split}.arrow"), features=features) as writer:
        for i in range(4):
            label = -1 if split.startswith("test") else i % 3
            writer.write({"premise": split, "hypothesis": str(i), "label": label, "idx": i})
        writer.finalize()
    splits.add(SplitInfo(split, num_examples=4))
names = {"builder_name": "glue", "dataset_name": "glue", "config_name": "mnli", "version": "0.0.0"}
DatasetInfo(features=features, splits=splits, **names).write_to_directory(str(folder))
"""

READ_CACHE = """
import json
from osrm_cli.errors import OsrmError
from osrm_cli.tasks.loading import load_split

found = {}
for split in ("train", "dev", "dev_mismatched", "test"):
    data = load_split("mnli", "hub", split, limit=3)
    found[split] = [[*example.texts, example.label] for example in data.examples]
try:
    load_split("cola", "hub", "train")
except OsrmError as error:
    found["error"] = [str(error), error.hint]
print(json.dumps(found))
"""


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_hub_offline(tmp_path, variable, monkeypatch):
    """In a process of its own: ``datasets`` reads its environment once, when it is imported."""
    for each in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "1")
    out = subprocess.run(
        [sys.executable, "-c", FILL_CACHE + READ_CACHE], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = json.loads(out)
    assert found["train"] == [["train", "0", 0], ["train", "1", 1], ["train", "2", 2]]
    assert found["dev"][1] == ["validation_matched", "1", 1]
    assert found["dev_mismatched"][1] == ["validation_mismatched", "1", 1]
    assert found["test"] == [["test_matched", str(i), None] for i in range(3)]
    message, hint = found["error"]
    assert message.startswith("GLUE's 'cola' is not in the cache of datasets and cannot be had: ")
    assert "\n" not in message
    for way in ("--data mini", "--data FOLDER", "go online once", "HF_HOME"):
        assert way in hint


@pytest.mark.parametrize("labels", [None, ("a", "b", "c"), (3, 10)])
def test_a_task_survives_json(labels):
    task = Task("mine", ("first", "second"), labels, ("accuracy",), 64)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert task.num_labels == (1 if labels is None else len(labels))


def numbered(count, name="mine", split="train"):
    task = Task(name, ("text",), None, ("pearson",))
    return TaskSplit(task, split, tuple(Example((str(i),), float(i)) for i in range(count)), "file")


def test_texts_without_labels(tmp_path):
    """The same texts in the same order as with labels; a label may be missing, or be none of the classes."""
    task = Task("own", ("b", "a"), ("no", "yes"), ("accuracy",))
    rows = [{"a": f"a{i}", "b": f"b{i}"} for i in range(4)]
    write(tmp_path, "own", "train", [row if i else {**row, "label": "maybe"} for i, row in enumerate(rows)])
    found = load_texts(task, tmp_path, "train")
    assert found.examples == tuple(Example((f"b{i}", f"a{i}"), None) for i in range(4))
    assert (found.task, found.split, found.source) == (task, "train", str(tmp_path / "own" / "train.jsonl"))
    labelled = load_split(list_tasks("mini")[0], "mini", "dev")
    found = load_texts(labelled.task, "mini", "dev")
    assert [example.texts for example in found.examples] == [example.texts for example in labelled.examples]
    assert {example.label for example in found.examples} == {None}
    with pytest.raises(OsrmError, match="has no split 'test'"):
        load_texts(task, tmp_path, "test")
    write(tmp_path, "own", "train", [{"a": "a", "label": 1}])
    with pytest.raises(OsrmError, match="no column 'b'"):
        load_texts(task, tmp_path, "train")


def test_sample():
    data = numbered(1000)
    drawn = draw_examples(data, 50, seed=0)
    assert drawn == draw_examples(data, 50, seed=0)
    assert len(set(drawn.examples)) == 50
    assert set(drawn.examples) <= set(data.examples)
    assert drawn.examples == draw_examples(data, 500, seed=0).examples[:50], "a smaller draw starts a larger one"
    assert set(draw_examples(data, 5000, seed=0).examples) == set(data.examples)
    assert drawn.examples != draw_examples(data, 50, seed=1).examples
    assert drawn.examples != draw_examples(numbered(1000, "other"), 50, seed=0).examples
    assert (drawn.task, drawn.split, drawn.source) == (data.task, data.split, data.source)
    assert 300 < sum(draw_examples(data, 500, seed=0).labels) / 500 < 700
    assert drawn.sha256 != data.sha256


def test_a_sample_is_the_same_everywhere():
    """These numbers are the promise: they must not change with the platform or the version of anything."""
    assert draw_examples(numbered(1000), 5, seed=42).labels == [62.0, 670.0, 81.0, 414.0, 336.0]


def test_the_digest_sees_texts_labels_and_order():
    one, two = Example(("a", "b"), 1), Example(("a",), None)
    task = Task("mine", ("text",), (0, 1), ("accuracy",))
    variants = [
        (one, two),
        (two, one),
        (one,),
        (Example(("a b",), 1), two),
        (Example(("a", "b"), 0), two),
        (one, Example(("a",), 0)),
    ]
    assert len({TaskSplit(task, "train", examples, "x").sha256 for examples in variants}) == len(variants)
    assert TaskSplit(task, "train", (one,), "x").sha256 == TaskSplit(task, "dev", (one,), "y").sha256


def test_reading_tasks_needs_no_torch():
    code = (
        "import sys; from osrm_cli.tasks.loading import load_split; "
        "load_split('mini-mood', 'mini', 'dev'); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "sklearn", "pyarrow", "pydantic", "pandas"} & set(modules)
