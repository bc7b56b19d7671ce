"""Rows with several labels: how they are read, scored and refused, and the pipeline on such a task."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from osrm_cli.errors import OsrmError
from osrm_cli.models.linear_head import fit_linear_head, sum_classifier_losses
from osrm_cli.reporting.bootstrap import BootstrapResamples
from osrm_cli.tasks.description import describe_task_split
from osrm_cli.tasks.label_sets import find_label_without_contrast, label_matrix, label_set, label_sets_from_logits
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.metrics import compute_task_scores
from osrm_cli.tasks.task import Task
from tests.run_cli import osrm

TASK = Task("t", ("text",), ("a", "b", "c"), ("micro_f1", "subset_accuracy"), kind="multi-label")


def write(folder: Path, text: str, name: str = "train.jsonl", toml: str = "") -> Path:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / name).write_text(text)
    if toml:
        (folder / "mine" / "task.toml").write_text(toml)
    return folder


def lines(*labels: object) -> str:
    return "".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_lists_of_names(tmp_path: Path) -> None:
    data = load_split("mine", write(tmp_path, lines(["b", "a"], [], ["c "], ["a"], None)), "train")
    assert (data.task.labels, data.task.kind, data.task.metrics) == (("a", "b", "c"), "multi-label", ("micro_f1",))
    assert data.labels == [0b011, 0, 0b100, 0b001]
    assert "left out 1 of 5 rows without label" in data.warnings[0]
    assert Task.from_dict(data.task.to_dict()) == data.task


def test_lists_of_indices_of_declared_names(tmp_path: Path) -> None:
    write(tmp_path, lines([0, 2], [1]), toml='labels = ["x", "y", "z"]\n')
    data = load_split("mine", tmp_path, "train")
    assert (data.labels, data.task.labels) == ([0b101, 0b010], ("x", "y", "z"))


def test_a_column_of_0_and_1_for_each_class(tmp_path: Path) -> None:
    text = "id,comment_text,toxic,threat\nx1,one text,1,0\nx2,another,1,1\nx3,a third,0,0\n"
    data = load_split("mine", write(tmp_path, text, "train.csv"), "train")
    assert (data.task.columns, data.task.labels, data.labels) == (("comment_text",), ("toxic", "threat"), [1, 3, 0])
    assert "toxic, threat hold 0 and 1 and are taken for classes" in data.warnings[0]
    described = describe_task_split(data)
    assert described["labels"] == {"toxic": 2, "threat": 1}
    assert described["first"]["toxic, threat"] == ["toxic"]
    write(tmp_path, text, "train.csv", described["task_toml"])  # what it shows says the same, without a warning
    again = load_split("mine", tmp_path, "train")
    assert (again.task, again.labels, again.warnings) == (data.task, data.labels, ())
    write(tmp_path, text, "train.csv", 'label_column = "toxic"\n')
    assert load_split("mine", tmp_path, "train").task.labels == (0, 1)


@pytest.mark.parametrize(
    ("text", "name", "toml", "message"),
    [
        (lines(["a"], ["b"], "a"), "train.jsonl", "", r"train.jsonl:3: the label is 'a', expected a list of classes"),
        (lines(["a"], [1]), "train.jsonl", "", "the labels are words and numbers"),
        (lines(["a"], ["a"]), "train.jsonl", "", "has 1 different labels in column 'label', expected 2 to 50"),
        (lines(["a"], ["d"]), "train.jsonl", 'labels = ["a", "b"]', r"train.jsonl:2: label \['d'\] is out of range"),
        (lines(["a"], ["b"]), "train.jsonl", 'metrics = ["accuracy"]', "'accuracy' is not a metric for several labels"),
        ("text,a,b\nx,1,0\ny,0,2\n", "train.csv", 'label_column = ["a", "b"]', "column 'b' holds 2, expected 0 or 1"),
        ("text,a\nx,1\ny,0\n", "train.csv", 'label_column = ["a", "b"]', "has no column 'b'"),
    ],
)
def test_what_is_no_label_set_is_refused(tmp_path: Path, text: str, name: str, toml: str, message: str) -> None:
    with pytest.raises(OsrmError, match=message):
        load_split("mine", write(tmp_path, text, name, toml), "train")


# --- scores -----------------------------------------------------------------------------------------------------------

SETS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=20)


@settings(deadline=None)
@given(SETS)
def test_metrics_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    found, truth = (np.array(column) for column in zip(*pairs, strict=True))
    matrices = [np.array([[label >> i & 1 for i in range(3)] for label in column]) for column in (truth, found)]
    scores = compute_task_scores(TASK, found, truth)
    assert scores["micro_f1"] == pytest.approx(100 * f1_score(*matrices, average="micro", zero_division=0))
    assert scores["subset_accuracy"] == pytest.approx(100 * accuracy_score(*matrices))


@settings(deadline=None)
@given(SETS)
def test_scores_of_resamples_are_those_of_the_examples_drawn(pairs: list[tuple[int, int]]) -> None:
    found, truth = (np.array(column) for column in zip(*pairs, strict=True))
    drawn = np.random.default_rng(0).integers(0, len(pairs), (3, len(pairs)))
    counts = np.stack([np.bincount(row, minlength=len(pairs)) for row in drawn]).astype(float)
    for name in TASK.metrics:
        expected = [compute_task_scores(TASK, found[row], truth[row])[name] for row in drawn]
        np.testing.assert_allclose(BootstrapResamples(counts, truth).headlines([name], found), expected, atol=1e-9)


def test_a_set_is_what_its_bits_say() -> None:
    assert label_set([0, 2, 2]) == 0b101
    assert label_matrix([0b101, 0], 3).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert label_sets_from_logits(np.array([[0.1, -2.0, 3.0], [0.0, 0.0, -1.0]])).tolist() == [0b101, 0]


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_head_is_a_regression_for_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    flags = (inputs[:, :3] + noise > 0).long()
    labels = [label_set(row.nonzero().flatten().tolist()) for row in flags]
    head = torch.nn.Linear(4, 3, dtype=torch.float64)
    fit_linear_head(head, TASK, inputs, labels)
    scaled = StandardScaler().fit_transform(inputs)
    for index in range(3):
        margins = head(inputs)[:, index].detach().numpy()
        fits = [
            LogisticRegression(C=strength, max_iter=1000).fit(scaled, flags[:, index]).decision_function(scaled)
            for strength in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
        ]
        assert min(np.abs(margins - fit).max() for fit in fits) < 1e-6
    assert find_label_without_contrast(TASK, labels) is None
    assert find_label_without_contrast(TASK, [0b011, 0b001]) == "a"  # it holds for every row


def test_the_loss_is_that_of_transformers() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 3, 7, 4]
    flags = torch.tensor([[label >> i & 1 for i in range(3)] for label in labels]).float()
    expected = 5 * torch.nn.BCEWithLogitsLoss()(logits, flags)
    torch.testing.assert_close(sum_classifier_losses(logits, TASK, labels), expected)


def test_the_pipeline_on_a_task_with_several_labels_a_row(
    tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    for split, size in (("train", 64), ("dev", 32)):
        rows = []
        for _ in range(size):
            labels = [name for name in ("good", "bad", "fine") if draw.random() < 0.5]
            text = " ".join([*(f"w{draw.randrange(60)}" for _ in range(3)), *labels])
            rows.append(json.dumps({"text": text, "labels": labels}) + "\n")
        folder = tmp_path / "data" / "words"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.jsonl").write_text("".join(rows))
    (tmp_path / "data" / "pair").symlink_to(text_tasks / "pair")
    (tmp_path / "osrm.toml").write_text(f'model = "{tiny_model("bert")}"\ndata = "data"\nquiet = true\n')
    for command in (
        "collect --samples 30 --statistic mean --statistic second-moment --statistic gradient",
        "init --each --rank 4",
        "train starts/words starts/pair --epochs 4 --batch-size 8 --lr 0.02 --interference-penalty 0",
        "merge adapters/words adapters/pair --lambda 0.5",
        "eval merged --predictions",
        "sweep adapters/words adapters/pair --lambda 0.3,0.6 --predictions",
        "calibrate merged --samples 20",
        "report merged",
    ):
        run = osrm(*command.split(), cwd=tmp_path)
        assert run.code == 0, (command, run)
    scores = json.loads((tmp_path / "merged" / "scores.json").read_text())
    row = scores["tasks"]["words"]
    truth, found = (np.array(scores[key]["words"]) for key in ("labels", "predictions"))
    matrices = [np.array([[label >> i & 1 for i in range(3)] for label in column]) for column in (truth, found)]
    assert row["headline"] == pytest.approx(100 * f1_score(*matrices, average="micro", zero_division=0))
    losses = json.loads((tmp_path / "adapters" / "words" / "training.json").read_text())["losses"]
    assert losses[-1][1] < losses[0][1] - 0.02
    run = osrm("merge", "adapters/words", "adapters/pair", "--method", "fisher", "--out", "fisher", cwd=tmp_path)
    assert run.error.startswith("method fisher takes the outputs for probabilities of one class; task 'words' has")
