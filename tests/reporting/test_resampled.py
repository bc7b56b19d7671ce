"""Metrics on resamples equal the metrics themselves on the examples drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.reporting import bootstrap as resampled
from osrm_cli.tasks.metrics import REGRESSION_METRICS, compute_scores, primary_score
from osrm_cli.tasks.task import Task

CLASSES = [("accuracy",), ("f1",), ("matthews",), ("accuracy", "f1")]
SCORES = [("pearson",), ("spearman",), ("pearson", "spearman")]


def by_hand(names: tuple[str, ...], counts: np.ndarray, predictions: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The metrics of ``osrm eval`` on the drawn examples, one after the other."""
    drawn = np.repeat(np.arange(len(labels)), counts.astype(int))
    task = Task("t", ("text",), None if names[0] in REGRESSION_METRICS else tuple(range(k)), names)
    return primary_score(task, compute_scores(task, predictions[drawn], labels[drawn]))


@pytest.mark.parametrize("names", CLASSES, ids="+".join)
@given(seed=st.integers(0, 2**32), examples=st.integers(2, 40), classes=st.integers(2, 4))
@settings(deadline=None, max_examples=12)
def test_classes(names: tuple[str, ...], seed: int, examples: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    labels, predictions = draw.integers(0, classes, (2, examples))
    counts = next(resampled.draws(draw, examples, 6))
    found = resampled.Resamples(counts, labels, classes).headlines(names, predictions)
    wanted = [by_hand(names, row, predictions, labels, classes) for row in counts]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("names", SCORES, ids="+".join)
@given(seed=st.integers(0, 2**32), examples=st.integers(2, 40), levels=st.sampled_from([1, 3, 1000]))
@settings(deadline=None, max_examples=12)
def test_scores(names: tuple[str, ...], seed: int, examples: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    labels, predictions = draw.integers(0, levels, (2, examples)) / 7
    counts = next(resampled.draws(draw, examples, 6))
    found = resampled.Resamples(counts, labels).headlines(names, predictions)
    wanted = [by_hand(names, row, predictions, labels, 2) for row in counts]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_draws_come_in_parts_of_whole_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampled, "_ENTRIES", 100)
    parts = list(resampled.draws(np.random.default_rng(0), 30, 7))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all((part.sum(1) == 30).all() for part in parts)


def test_every_example_is_drawn_equally_often() -> None:
    (counts,) = resampled.draws(np.random.default_rng(0), 50, 4000)
    np.testing.assert_allclose(counts.mean(0), 1, atol=5 / 4000**0.5)
    np.testing.assert_allclose(counts.var(0), 1 - 1 / 50, atol=0.15)
