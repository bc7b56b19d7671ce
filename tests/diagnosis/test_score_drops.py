import itertools
import json

import pytest
import scipy.stats

from osrm_cli.diagnosis.score_drops import ScoreDrops, correlate_score_drops, predict_disturbance, read_score_drops
from osrm_cli.errors import OsrmError
from tests.reporting.factories import scores, sweep

NAMES = "abcdefghijkl"


def matrix(columns):
    """What the first task's update does to the others' inputs; the other updates do nothing."""
    names = NAMES[: len(columns) + 1]
    return {t: {u: columns[names.index(u) - 1] if t == "a" and u != "a" else 0.0 for u in names} for t in names}


def found(columns, drops):
    names = NAMES[: len(columns) + 1]
    merge = ScoreDrops("m", list(names), dict(zip(names[1:], drops, strict=True)))
    return correlate_score_drops(matrix(columns), [merge])["merges"][0]


def expected(columns, drops):
    """Rank correlation, and twice the share of orders at least as extreme on its side."""
    rho = scipy.stats.spearmanr(columns, drops).statistic
    every = [scipy.stats.spearmanr(order, drops).statistic for order in itertools.permutations(columns)]
    ends = [sum(r >= rho - 1e-12 for r in every), sum(r <= rho + 1e-12 for r in every)]
    return rho, min(1, 2 * min(ends) / len(every))


@pytest.mark.parametrize("columns", [[1, 2, 3, 4], [5, 5, 1, 2, 9], [3, 1, 2]])
def test_p_is_the_share_of_orders_that_are_as_good(columns):
    drops = list(reversed(columns[1:])) + columns[:1]
    row = found(columns, drops)
    assert (row["rho"], row["p"]) == pytest.approx(expected(columns, drops))


def test_many_points_take_scipy_s_p():
    columns = [3.0, 1, 4, 15, 9, 2, 6, 5, 35]
    drops = [1.0, 2, 3, 9, 5, 4, 8, 6, 7]
    theirs = scipy.stats.spearmanr(columns, drops)
    row = found(columns, drops)
    assert (row["n"], row["rho"], row["p"]) == (9, pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))


@pytest.mark.parametrize(("columns", "drops"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4])])
def test_nothing_can_be_said(columns, drops):
    row = found([*columns], [*drops])
    assert (row["rho"], row["p"]) == (None, None)


def test_only_tasks_of_the_merge_disturb():
    values = {"a": {"a": 9, "b": 1, "c": 2}, "b": {"a": 3, "b": 9, "c": 4}, "c": {"a": 5, "b": 6, "c": 9}}
    assert predict_disturbance(values, ["a", "b", "c"], "a") == 8
    assert predict_disturbance(values, ["a", "b"], "a") == 3


def test_merges_of_two_are_taken_together():
    values = {"a": {"a": 9, "b": 1, "c": 2}, "b": {"a": 3, "b": 9, "c": 4}, "c": {"a": 5, "b": 6, "c": 1}}
    merges = [
        ScoreDrops("ab", ["a", "b"], {"a": 30.0, "b": 10.0}),
        ScoreDrops("ac", ["a", "c"], {"a": 50.0, "c": 20.0}),
        ScoreDrops("bc", ["b", "c"], {"b": 60.0, "c": 40.0}),
    ]
    row = correlate_score_drops(values, merges)
    assert row["merges"] == []
    assert (row["pairs"]["n"], row["pairs"]["rho"], row["pairs"]["p"]) == (6, pytest.approx(1), pytest.approx(2 / 720))
    over_own = expected([3 / 9, 1 / 9, 5 / 9, 2 / 1, 6 / 9, 4 / 1], [30, 10, 50, 20, 60, 40])
    assert (row["pairs"]["to_own"]["rho"], row["pairs"]["to_own"]["p"]) == pytest.approx(over_own)


def test_a_sweep_gives_its_best_points_on_test(tmp_path):
    path = sweep(tmp_path / "sweep.json", calibrated=True, tasks=("cola", "qqp"))
    facts = json.loads(path.read_text())
    single = facts["single"]["test"]["tasks"]
    plain, calibrated = read_score_drops(path)
    assert (plain.name, calibrated.name) == (f"{path}: ties", f"{path}: ties, calibrated")
    for drops, row in zip((plain, calibrated), facts["best"], strict=True):
        merged = facts["points"][row["point"]]["test"]["tasks"]
        assert drops.tasks == ["cola", "qqp"]
        assert drops.drops == {task: single[task]["headline"] - merged[task]["headline"] for task in drops.tasks}


def test_a_merge_gives_the_drops_that_are_known(tmp_path):
    path = scores(tmp_path / "scores.json")
    facts = json.loads(path.read_text())
    facts["tasks"]["cola"]["single"] = None
    path.write_text(json.dumps(facts))
    (drops,) = read_score_drops(path)
    assert (drops.name, drops.tasks) == (str(path), ["cola", "mnli", "qqp", "stsb"])
    known = {task: row["single"] - row["headline"] for task, row in facts["tasks"].items() if task != "cola"}
    assert drops.drops == known


def test_scores_without_single_adapters_are_refused(tmp_path):
    path = scores(tmp_path / "scores.json")
    facts = json.loads(path.read_text())
    for row in facts["tasks"].values():
        row["single"] = None
    path.write_text(json.dumps(facts))
    with pytest.raises(OsrmError, match="no task has its single adapter's score"):
        read_score_drops(path)


def test_scores_of_a_single_adapter_are_refused(tmp_path):
    with pytest.raises(OsrmError, match="has no scores of a merge"):
        read_score_drops(scores(tmp_path / "scores.json", method=None))
