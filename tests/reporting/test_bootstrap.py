"""The paired bootstrap on cases whose answer is known; metrics on resamples equal the metrics on the examples drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.reporting import bootstrap
from osrm_cli.reporting.bootstrap import Bootstrap, Difference
from osrm_cli.tasks import metrics
from osrm_cli.tasks.task import Task
from osrm_cli.tasks.text.metrics import loss_scores

Right = dict[str, np.ndarray]  # by task: which examples are answered rightly


def run(right: Right, predictions: bool = True) -> dict[str, TaskScore]:
    """Scores of a model on two-class tasks whose labels are all 1."""
    return {
        task: TaskScore(
            {"accuracy": 0.0},
            100 * held.mean(),
            examples=len(held),
            predictions=tuple(held.astype(float)) if predictions else (),
        )
        for task, held in right.items()
    }


def compare(arm: dict[str, Right], base: dict[str, Right], predictions: bool = True, **more: int) -> Difference | None:
    tasks = {task: len(held) for right in arm.values() for task, held in right.items()}
    labels = {task: np.ones(examples, dtype=int) for task, examples in tasks.items()} if predictions else {}
    resampling = Bootstrap(labels, **{"resamples": 1000, **more})
    ours = {seed: run(right, predictions) for seed, right in arm.items()}
    theirs = {seed: run(right, predictions) for seed, right in base.items()}
    resampling.prepare([*ours.values(), *theirs.values()])
    return resampling.difference(ours, theirs)


def draw(seed: int, p: float, examples: int = 100, tasks: tuple[str, ...] = ("a", "b")) -> Right:
    return {task: np.random.default_rng([seed, *task.encode()]).uniform(size=examples) < p for task in tasks}


@pytest.mark.parametrize("predictions", [True, False])
def test_equal_arms_differ_by_exactly_nothing(predictions: bool) -> None:
    arm = {"0": draw(0, 0.7), "1": draw(1, 0.6)}
    found = compare(arm, arm, predictions)
    assert found is not None
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


def test_a_difference_is_found_with_the_width_that_theory_gives() -> None:
    base = draw(0, 0.5, 1000, ("a",))
    better = {"a": base["a"] | (np.random.default_rng(9).uniform(size=1000) < 0.2)}
    found = compare({"0": better}, {"0": base})
    assert found is not None
    gains = better["a"].astype(float) - base["a"]
    assert found.mean == pytest.approx(100 * gains.mean())
    assert found.over == "examples"
    error = 100 * gains.std() / 1000**0.5  # pairs: the two arms mostly agree
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.3 * error)
    assert found.excludes_zero


def test_the_truth_lies_in_the_interval_as_often_as_promised() -> None:
    hits = 0
    for trial in range(250):
        chance = np.random.default_rng(trial).uniform(size=(3, 150))
        base = chance[0] < 0.65
        arm = np.where(chance[1] < 0.5, base, chance[2] < 0.85)  # right in 75 % of all cases
        found = compare({"0": {"a": arm}}, {"0": {"a": base}}, resamples=250, seed=trial)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 10 <= found.high
    assert 0.91 <= hits / 250 <= 0.98


def test_seeds_are_paired() -> None:
    """Both arms vary much from seed to seed, their difference does not."""
    good, bad = draw(0, 0.9, 400), draw(1, 0.5, 400)
    worse = {
        seed: {t: held & (np.arange(400) % 10 > 0) for t, held in right.items()}
        for seed, right in zip("01", (good, bad), strict=True)
    }
    found = compare({"0": good, "1": bad}, worse)
    assert found is not None
    assert found.over == "examples and seeds"
    assert found.low is not None
    assert found.low > 2
    assert found.high is not None
    assert found.high < 15


def test_seeds_that_disagree_widen_the_interval() -> None:
    base = {seed: draw(3, 0.5, 800) for seed in "012"}
    steady = {seed: {t: held | (np.arange(800) % 20 == 0) for t, held in right.items()} for seed, right in base.items()}
    lucky = {**base, "0": {t: held | (np.arange(800) % 20 < 3) for t, held in base["0"].items()}}
    narrow, wide = compare(steady, base), compare(lucky, base)
    assert narrow is not None
    assert wide is not None
    assert narrow.mean == pytest.approx(wide.mean, abs=0.6)
    assert narrow.excludes_zero
    assert not wide.excludes_zero


def test_only_common_seeds_count() -> None:
    arm = {"0": draw(0, 0.8), "7": draw(1, 0.1)}
    base = {"0": draw(2, 0.6), "8": draw(3, 0.9)}
    found, alone = compare(arm, base), compare({"0": arm["0"]}, {"0": base["0"]})
    assert found == alone
    assert found is not None
    assert found.seeds == 1
    assert compare({"1": draw(0, 0.5)}, {"2": draw(0, 0.5)}) is None


def test_without_predictions_pairs_of_seed_and_task_are_drawn() -> None:
    base = {seed: {task: np.arange(100) < 50 for task in "abcd"} for seed in "01"}
    gains = [1, 2, 3, 4, 5, 6, 7, 8]
    arm = {
        seed: {task: np.arange(100) < 50 + gains[4 * s + t] for t, task in enumerate("abcd")}
        for s, seed in enumerate("01")
    }
    found = compare(arm, base, predictions=False)
    assert found is not None
    assert found.over == "seeds and tasks"
    assert found.mean == pytest.approx(4.5)
    error = np.std(gains) / 8**0.5
    assert found.low == pytest.approx(4.5 - 1.96 * error, abs=0.3)
    assert found.high == pytest.approx(4.5 + 1.96 * error, abs=0.3)


def test_one_number_has_no_interval() -> None:
    found = compare({"0": draw(0, 0.8, tasks=("a",))}, {"0": draw(1, 0.6, tasks=("a",))}, predictions=False)
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert not found.excludes_zero


def test_resamples_depend_on_the_seed_and_on_nothing_beside() -> None:
    arm, base = draw(0, 0.7, 501), draw(1, 0.6, 501)
    first = compare({"0": arm}, {"0": base})
    assert compare({"0": arm}, {"0": base}) == first
    assert compare({"0": arm}, {"0": base}, seed=1) != first
    labels = {task: np.ones(501, dtype=int) for task in ("a", "b", "aa", "c")}
    resampling = Bootstrap(labels, 1000)
    others = [run(draw(n, 0.5, 501, ("a", "aa", "b", "c"))) for n in range(3)]
    resampling.prepare([*others, run(base), run(arm)])
    assert resampling.difference({"0": run(arm)}, {"0": run(base)}) == first


CLASSES = [("accuracy",), ("f1",), ("matthews",), ("accuracy", "f1")]
SCORES = [("pearson",), ("spearman",), ("pearson", "spearman")]


def by_hand(names: tuple[str, ...], counts: np.ndarray, predictions: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The metrics of ``osrm eval`` on the drawn examples, one after the other."""
    drawn = np.repeat(np.arange(len(labels)), counts.astype(int))
    task = Task("t", ("text",), None if names[0] in metrics.REGRESSION_METRICS else tuple(range(k)), names)
    return metrics.primary_score(task, metrics.compute_task_scores(task, predictions[drawn], labels[drawn]))


@pytest.mark.parametrize("names", CLASSES, ids="+".join)
@given(seed=st.integers(0, 2**32), examples=st.integers(2, 40), classes=st.integers(2, 4))
@settings(deadline=None, max_examples=12)
def test_classes(names: tuple[str, ...], seed: int, examples: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    labels, predictions = draw.integers(0, classes, (2, examples))
    counts = next(bootstrap.draw_resample_counts(draw, examples, 6))
    found = bootstrap.BootstrapResamples(counts, labels, classes).headlines(names, predictions)
    wanted = [by_hand(names, row, predictions, labels, classes) for row in counts]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("names", SCORES, ids="+".join)
@given(seed=st.integers(0, 2**32), examples=st.integers(2, 40), levels=st.sampled_from([1, 3, 1000]))
@settings(deadline=None, max_examples=12)
def test_scores(names: tuple[str, ...], seed: int, examples: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    labels, predictions = draw.integers(0, levels, (2, examples)) / 7
    counts = next(bootstrap.draw_resample_counts(draw, examples, 6))
    found = bootstrap.BootstrapResamples(counts, labels).headlines(names, predictions)
    wanted = [by_hand(names, row, predictions, labels, 2) for row in counts]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_draws_come_in_parts_of_whole_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_ENTRIES", 100)
    parts = list(bootstrap.draw_resample_counts(np.random.default_rng(0), 30, 7))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all((part.sum(1) == 30).all() for part in parts)


def test_every_example_is_drawn_equally_often() -> None:
    (counts,) = bootstrap.draw_resample_counts(np.random.default_rng(0), 50, 4000)
    np.testing.assert_allclose(counts.mean(0), 1, atol=5 / 4000**0.5)
    np.testing.assert_allclose(counts.var(0), 1 - 1 / 50, atol=0.15)


def text_run(per_example: dict[str, np.ndarray]) -> dict[str, TaskScore]:
    """Scores of a model on one task that is answered with text."""
    (headline,) = bootstrap.resampled_text_headlines(np.ones((1, 1000)), per_example)
    values = {name: tuple(own.tolist()) for name, own in per_example.items()}
    return {"a": TaskScore({"loss": 0.0}, headline, examples=1000, per_example=values)}


def compare_text(arm: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> Difference:
    resampling, ours, theirs = Bootstrap({}, resamples=1000), text_run(arm), text_run(base)
    resampling.prepare([ours, theirs])
    found = resampling.difference({"0": ours}, {"0": theirs})
    assert found is not None
    assert found.over == "examples"
    return found


def test_means_of_text_have_the_width_that_theory_gives() -> None:
    draw = np.random.default_rng(0)
    base = draw.uniform(0, 80, 1000)
    arm = base + draw.uniform(-10, 20, 1000)
    found = compare_text({"rouge_l": arm}, {"rouge_l": base})
    error = (arm - base).std() / 1000**0.5  # pairs: the scores themselves spread further
    assert found.mean == pytest.approx((arm - base).mean())
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.3 * error)


def test_likelihoods_have_the_width_that_theory_gives() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 60, 1000)
    base = draw.uniform(0.5, 2.5, 1000)
    arm = base - draw.uniform(0, 0.2, 1000)
    found = compare_text({"loss": arm, "tokens": tokens}, {"loss": base, "tokens": tokens})
    share = tokens / tokens.sum()
    mean = {name: (share * loss).sum() for name, loss in (("arm", arm), ("base", base))}
    score = {name: 100 * np.exp(-loss) for name, loss in mean.items()}
    assert found.mean == pytest.approx(score["arm"] - score["base"])
    # by the delta method: a ratio of sums over examples
    parts = share * (score["base"] * (base - mean["base"]) - score["arm"] * (arm - mean["arm"]))
    error = np.sqrt((parts**2).sum())
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.3 * error)


@given(seed=st.integers(0, 2**32), examples=st.integers(1, 40))
@settings(deadline=None, max_examples=12)
def test_text_on_resamples_is_text_on_the_examples_drawn(seed: int, examples: int) -> None:
    draw = np.random.default_rng(seed)
    tokens, loss, hits = draw.integers(1, 9, examples), draw.uniform(0, 5, examples), draw.uniform(0, 100, examples)
    counts = next(bootstrap.draw_resample_counts(draw, examples, 6))
    found = bootstrap.resampled_text_headlines(counts, {"rouge_l": hits, "loss": loss, "tokens": tokens})
    for row, score in zip(counts, found, strict=True):
        drawn = np.repeat(np.arange(examples), row.astype(int))
        mean = (loss[drawn] * tokens[drawn]).sum() / tokens[drawn].sum()
        assert score == pytest.approx((hits[drawn].mean() + loss_scores(mean)["likelihood"]) / 2)
