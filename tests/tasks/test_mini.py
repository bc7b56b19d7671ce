import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from osrm_cli.tasks.mini import MINI, MINI_FOLDER
from osrm_cli.tasks.task import Task
from tests.run_cli import ROOT

SCRIPT = ROOT / "scripts" / "generate_mini_tasks.py"
SPECIFICATION = importlib.util.spec_from_file_location("generate_mini_tasks", SCRIPT)
GENERATOR = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(GENERATOR)
SIZES, HELD_OUT, Draw = GENERATOR.SIZES, GENERATOR.HELD_OUT, GENERATOR.Draw
MINI_TASKS = [Task(name, **fields) for name, fields in MINI.items()]
GOLDEN = "79368e7585013c8cc2e8e5c18ab16bd77c72f22af33b6c6b1438dff3949390fc"
TASKS = pytest.mark.parametrize("task", MINI_TASKS, ids=lambda task: task.name)
DATA = {
    (name, split): [json.loads(line) for line in (MINI_FOLDER / name / f"{split}.jsonl").read_text().splitlines()]
    for name in MINI
    for split in SIZES
}
# Articles, prepositions and the like, which no text does without.
COMMON = set(
    re.findall(
        "[a-z]+",
        """
    a an the to of in on at for by with under from and i is was has have it its one my own how what no not
""",
    )
)


def texts(task, split):
    return [tuple(row[column] for column in task.columns) for row in DATA[task.name, split]]


def labels(task, split):
    return [row["label"] for row in DATA[task.name, split]]


def words(task):
    joined = " ".join(text for split in SIZES for pair in texts(task, split) for text in pair)
    return set(re.findall(r"[a-z]+", joined)) - COMMON


def test_has_the_shapes_of_the_eight_glue_tasks():
    assert sorted((len(task.columns), len(task.labels or ())) for task in MINI_TASKS) == [
        (1, 2), (1, 2), (2, 0), (2, 2), (2, 2), (2, 2), (2, 2), (2, 3),
    ]  # fmt: skip
    assert len({task.name for task in MINI_TASKS}) == 8
    assert all(task.name.startswith("mini-") for task in MINI_TASKS)
    assert {metric for task in MINI_TASKS for metric in task.metrics} == {
        "accuracy", "f1", "matthews", "pearson", "spearman",
    }  # fmt: skip


@TASKS
@pytest.mark.parametrize("split", SIZES)
def test_rows_hold_the_columns_and_a_label(task, split):
    assert len(DATA[task.name, split]) == SIZES[split]
    for row in DATA[task.name, split]:
        assert list(row) == [*task.columns, "label"]
        assert type(row["label"]) is (int if task.labels else float)
        for column in task.columns:
            assert re.fullmatch(r"[a-z0-9]+( [a-z0-9,]+)*", row[column]), row[column]
            assert len(row[column].split()) <= 14


@TASKS
@pytest.mark.parametrize("split", SIZES)
def test_labels_are_balanced_and_in_no_order(task, split):
    found = labels(task, split)
    counts = Counter(found)
    assert sorted(counts) == list(range(len(task.labels or range(6))))
    assert max(counts.values()) - min(counts.values()) <= 1
    repeats = sum(one == next_one for one, next_one in pairwise(found)) / (len(found) - 1)
    assert repeats == pytest.approx(1 / len(counts), abs=0.12)


@TASKS
def test_no_example_occurs_twice(task):
    every = texts(task, "train") + texts(task, "dev")
    assert len(set(every)) == len(every)


@TASKS
def test_texts_of_a_pair_differ(task):
    assert all(len(set(pair)) == len(task.columns) for split in SIZES for pair in texts(task, split))


@TASKS
def test_dev_has_words_that_train_lacks(task):
    seen = {word for pair in texts(task, "train") for text in pair for word in text.split()}
    strange = [any(word not in seen for text in pair for word in text.split()) for pair in texts(task, "dev")]
    assert 0.3 < np.mean(strange) < 0.97


@pytest.mark.parametrize(("one", "other"), list(combinations(MINI_TASKS, 2)), ids=lambda task: task.name)
def test_vocabularies_are_distinct(one, other):
    shared = words(one) & words(other)
    assert len(shared) < 0.12 * min(len(words(one)), len(words(other))), sorted(shared)


@TASKS
def test_bag_of_words_does_not_solve_it(task):
    counts = []
    for column in range(len(task.columns)):
        vectorizer = CountVectorizer(token_pattern=r"\S+")
        train = vectorizer.fit_transform(pair[column] for pair in texts(task, "train"))
        counts.append((train.toarray(), vectorizer.transform(pair[column] for pair in texts(task, "dev")).toarray()))
    train, dev = (np.hstack(part) for part in zip(*counts, strict=True))
    model = LogisticRegression(max_iter=1000) if task.labels else Ridge()
    predicted = model.fit(train, labels(task, "train")).predict(dev)
    if task.labels is None:
        score = pearsonr(predicted, labels(task, "dev")).statistic
    else:
        score = np.mean(predicted == labels(task, "dev"))
    assert score < 0.85


@TASKS
def test_no_single_word_gives_the_label_away(task):
    found = labels(task, "train")
    share = 1 / len(set(found))
    for word in words(task):
        holding = [
            label for label, pair in zip(found, texts(task, "train"), strict=True) if word in " ".join(pair).split()
        ]
        if holding:
            top, count = Counter(holding).most_common(1)[0]
            # Answering ``top`` whenever the word occurs, and guessing otherwise.
            right = count + share * (len(found) - len(holding))
            assert right / len(found) < share + 0.1, (word, top)


def test_the_files_are_what_the_script_writes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, SCRIPT, tmp_path], env=environment, check=True)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert written == sorted(path.relative_to(MINI_FOLDER) for path in MINI_FOLDER.rglob("*.jsonl"))
    for path in written:
        assert (tmp_path / path).read_bytes() == (MINI_FOLDER / path).read_bytes()


def test_rows_never_change():
    every = [[name, split, DATA[name, split]] for name in MINI for split in SIZES]
    assert hashlib.sha256(json.dumps(every).encode()).hexdigest() == GOLDEN


def test_train_draws_no_held_out_word():
    lexicon = ", ".join(f"word {n}" for n in range(1, 13))
    few, many = Draw("key", every_word=False), Draw("key", every_word=True)
    assert {few.word(lexicon) for _ in range(500)} == {f"word {n}" for n in range(1, 13) if n % HELD_OUT}
    assert {many.word(lexicon) for _ in range(500)} == {f"word {n}" for n in range(1, 13)}


def test_other_word_is_never_the_same():
    draw = Draw("key", every_word=True)
    assert {draw.other_word("one, two, three", "two") for _ in range(200)} == {"one", "three"}


def test_shuffled_keeps_the_items_and_favours_no_order():
    draw = Draw("key", every_word=True)
    orders = Counter(tuple(draw.shuffled((1, 2, 3))) for _ in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 150 for count in orders.values())
