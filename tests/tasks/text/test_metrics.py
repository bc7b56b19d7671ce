"""Metrics of answers, beside the libraries and by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.text.metrics import AnswerScores, compute_answer_scores, loss_scores

ANSWERS = ["the cat sat", " yes ", "wrong"]
REFERENCES = ["the cat sat down", "yes", "right"]


def test_exact_match_ignores_blanks_around() -> None:
    assert compute_answer_scores(["exact_match"], ANSWERS, REFERENCES) == AnswerScores(
        {"exact_match": pytest.approx(100 / 3)}, {"exact_match": (0.0, 100.0, 0.0)}
    )


def test_rouge_l_by_hand() -> None:
    pytest.importorskip("rouge_score")
    found = compute_answer_scores(["rouge_l"], ANSWERS, REFERENCES)
    each = [100 * 2 * 1 * 0.75 / 1.75, 100, 0]
    assert found.metrics["rouge_l"] == pytest.approx(sum(each) / 3)
    assert found.per_example["rouge_l"] == pytest.approx(each)


def test_chrf_is_sacrebleu_s() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    assert compute_answer_scores(["chrf"], ANSWERS, REFERENCES).metrics["chrf"] == pytest.approx(
        sacrebleu.CHRF().corpus_score(ANSWERS, [REFERENCES]).score
    )


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1}', 100),
        ('{"a": 1}', '{"a": 1, "b": "x"}', 100 * 2 / 3),
        ('{"a": 2}', '{"a": 1}', 0),
        ("no JSON", '{"a": 1}', 0),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 100),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}', 100),
        ("{}", "{}", 100),
    ],
)
def test_slots(answer: str, reference: str, expected: float) -> None:
    assert compute_answer_scores(["json_f1"], [answer], [reference]).metrics["json_f1"] == pytest.approx(expected)


def test_references_that_are_no_json() -> None:
    with pytest.raises(OsrmError, match="json_f1 needs answers in JSON, found 'yes'"):
        compute_answer_scores(["json_f1"], ["{}"], ["yes"])


@given(st.floats(0, 50))
def test_likelihood_is_that_of_the_perplexity(loss: float) -> None:
    scores = loss_scores(loss)
    assert scores["likelihood"] * scores["perplexity"] == pytest.approx(100)
    assert scores["perplexity"] == pytest.approx(math.exp(loss))
