"""Draws by a seed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osrm_cli.tasks.draws import are_sorted_by_label, draw_order_by_hash, draw_stratified


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 80), st.integers(0, 3))
def test_every_class_has_its_share(labels, count, seed):
    drawn = draw_stratified(labels, count, seed)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(count, len(labels))
    assert drawn == draw_stratified(labels, count, seed)
    sizes, found = Counter(labels), Counter(labels[index] for index in drawn)
    if count >= len(sizes):
        assert set(found) == set(sizes)
        for label, size in sizes.items():
            # One more or less by rounding, and as many less as other classes had to be given one.
            assert abs(found[label] - len(drawn) * size / len(labels)) <= len(sizes)


def test_a_draw_follows_the_seed_not_the_order():
    labels = [0] * 900 + [1] * 100
    drawn = draw_stratified(labels, 50, 0)
    assert Counter(labels[index] for index in drawn) == {0: 45, 1: 5}
    assert drawn != draw_stratified(labels, 50, 1)
    assert max(drawn[:45]) > 700
    assert draw_stratified(labels, 1000, 0) == list(range(1000))


def test_the_rarest_class_is_drawn():
    labels = [0] * 999 + [1]
    assert 999 in draw_stratified(labels, 2, 0)


def test_scores_are_one_class():
    drawn = draw_stratified([float(i) for i in range(1000)], 100, 0)
    assert len(drawn) == 100
    assert 300 < sum(drawn) / 100 < 700


def test_the_order_is_the_same_everywhere():
    """These numbers are the promise: they must not change with the platform or the version of anything."""
    assert draw_order_by_hash(range(6), "seed", 1) == [0, 1, 3, 4, 5, 2]
    assert draw_stratified([0] * 30 + [1] * 10, 5, 0) == [12, 15, 22, 24, 32]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0] * 5 + [1] * 5, True),
        ([1] * 5 + [0] * 5, True),
        ([0] * 10, True),
        ([0, 1] * 5, False),
        ([0] * 5 + [1] * 4 + [0], False),
        ([0, 1, 2], False),
        ([float(i) for i in range(10)], True),
        ([float(-i) for i in range(10)], True),
        ([0.0, 2.0, 1.0] * 4, False),
    ],
)
def test_sorted_labels(labels, expected):
    assert are_sorted_by_label(labels) == expected
