import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.glue import GLUE
from osrm_cli.tasks.metrics import (
    CLASSIFICATION_METRICS,
    REGRESSION_METRICS,
    compute_task_scores,
    predictions_from_logits,
    primary_score,
)
from osrm_cli.tasks.task import Task

TWO = Task("two", ("text",), ("no", "yes"), tuple(CLASSIFICATION_METRICS))
THREE = Task("three", ("text",), (10, 20, 30), tuple(CLASSIFICATION_METRICS))
REAL = Task("real", ("text",), None, tuple(REGRESSION_METRICS))


def test_two_classes():
    """2 true positives, 1 false positive, 3 true negatives, 2 false negatives."""
    found = compute_task_scores(TWO, [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1])
    assert found == pytest.approx(
        {
            "accuracy": 100 * 5 / 8,
            "f1": 100 * 2 * 2 / (2 * 2 + 1 + 2),
            "matthews": 100 * (2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5),
        }
    )


def test_f1_of_three_classes_is_the_mean_over_classes():
    found = compute_task_scores(THREE, [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0])
    assert found["f1"] == pytest.approx(100 * (2 / 4 + 4 / 5 + 2 / 3) / 3)
    assert found["accuracy"] == pytest.approx(100 * 4 / 6)


def test_correlations():
    found = compute_task_scores(REAL, [1.0, 2.0, 3.0, 10.0], [1.0, 2.0, 4.0, 3.0])
    x, y = (np.array(v) - np.mean(v) for v in ([1.0, 2.0, 3.0, 10.0], [1.0, 2.0, 4.0, 3.0]))
    assert found["pearson"] == pytest.approx(100 * (x @ y) / math.sqrt((x @ x) * (y @ y)))
    assert found["spearman"] == pytest.approx(100 * (1 - 6 * 2 / (4 * 15)))
    tied = compute_task_scores(REAL, [1.0, 1.0, 2.0], [1.0, 2.0, 3.0])["spearman"]
    assert tied == pytest.approx(100 * math.sqrt(3) / 2), "equal values share their mean rank"


@pytest.mark.parametrize("answer", [0, 1])
def test_a_constant_class_is_worth_nothing(answer):
    found = compute_task_scores(TWO, [answer] * 4, [0, 1, 1, 0])
    assert found["matthews"] == 0.0
    assert found["accuracy"] == 50.0
    assert found["f1"] == pytest.approx(100 * 2 / 3 if answer else 0.0)


@pytest.mark.parametrize("answers", [[0.0] * 4, [3.7] * 4, [3.7, 3.7, 3.7 + 1e-15, 3.7]])
def test_a_constant_score_is_worth_nothing(answers):
    assert compute_task_scores(REAL, answers, [1.0, 2.0, 3.0, 4.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute_task_scores(REAL, [1.0, 2.0, 3.0, 4.0], answers) == {"pearson": 0.0, "spearman": 0.0}


def test_one_example():
    assert compute_task_scores(REAL, [1.0], [2.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute_task_scores(TWO, [1], [1])["accuracy"] == 100.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30))
def test_any_answers_have_finite_scores(pairs):
    predictions, labels = zip(*pairs, strict=True)
    for task in (THREE, REAL):
        for name, value in compute_task_scores(task, predictions, labels).items():
            assert (-100.0001 if name in ("matthews", *REGRESSION_METRICS) else 0.0) <= value <= 100.0001


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        ("cola", {"matthews": 40.0}, 40.0),
        ("stsb", {"pearson": 80.0, "spearman": 70.0}, 75.0),
        ("mrpc", {"accuracy": 80.0, "f1": 90.0}, 85.0),
        ("qqp", {"accuracy": 60.0, "f1": 50.0}, 55.0),
        ("sst2", {"accuracy": 90.0}, 90.0),
        ("mnli", {"accuracy": 70.0}, 70.0),
        ("rte", {"accuracy": 60.0}, 60.0),
        ("qnli", {"accuracy": 65.0}, 65.0),
    ],
)
def test_headline_of_glue(name, scores, expected):
    assert primary_score(Task(name, **GLUE[name]), scores) == expected


def test_decide():
    assert predictions_from_logits(TWO, [[0.0, 1.0], [2.0, -1.0]]).tolist() == [1, 0]
    assert predictions_from_logits(REAL, [[0.5], [-2.0]]).tolist() == [0.5, -2.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("task", [TWO, REAL])
def test_outputs_that_are_no_numbers(task, bad):
    with pytest.raises(OsrmError, match=f"the model's outputs on '{task.name}' hold NaN or infinity") as error:
        predictions_from_logits(task, np.full((2, task.num_labels), bad))
    assert "--lr" in error.value.hint
