"""Metrics of answers that are text, in percent, through rouge-score and sacrebleu.

``rouge_l``: F-measure of ROUGE-L (Lin, 2004), no stemming. ``chrf``: chrF of the whole set (Popović, 2015).
``json_f1``: F1 of the answer's slots, mean over examples. ``accuracy``: share of rows whose right choice is the most
likely one. Both libraries are imported where they compute.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from osrm_cli.errors import OsrmError


def _exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Blanks around an answer do not count."""
    return [answer.strip() == reference.strip() for answer, reference in zip(answers, references, strict=True)]


def _rouge_l(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _explain_missing_metric_package("rouge_l", "rouge-score") from None
    scorer = RougeScorer(["rougeL"])
    pairs = zip(answers, references, strict=True)
    return [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]


def _chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    try:
        from sacrebleu import corpus_chrf
    except ImportError:
        raise _explain_missing_metric_package("chrf", "sacrebleu") from None
    return float(corpus_chrf(list(answers), [list(references)]).score)


def _json_f1(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [_slot_f1(answer, reference) for answer, reference in zip(answers, references, strict=True)]


def _slot_f1(answer: str, reference: str) -> float:
    wanted = _json_answer_slots(reference)
    if wanted is None:
        raise OsrmError(f"json_f1 needs answers in JSON, found {reference[:40]!r}", 'say metrics = ["rouge_l"]')
    given = _json_answer_slots(answer) or Counter()
    shared = (wanted & given).total()
    return 2 * shared / (wanted.total() + given.total()) if shared else float(not wanted and not given)


def _json_answer_slots(text: str) -> Counter[tuple[str, str]] | None:
    """Leaves of a JSON value with their paths; ``None`` if it is not JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    slots: Counter[tuple[str, str]] = Counter()

    def add(path: str, part: Any) -> None:
        if isinstance(part, dict):
            for key, item in part.items():
                add(f"{path}/{key}", item)
        elif isinstance(part, list):
            for item in part:
                add(f"{path}/[]", item)
        else:
            slots[path, json.dumps(part)] += 1

    add("", value)
    return slots


def _explain_missing_metric_package(metric: str, package: str) -> OsrmError:
    return OsrmError(
        f"metric {metric} needs the package {package}",
        "pip install 'osrm-cli[text]', or say metrics = [\"exact_match\"] in the task's task.toml",
    )


_EXAMPLE_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "exact_match": _exact_match,
    "rouge_l": _rouge_l,
    "json_f1": _json_f1,
}
_SET_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {"chrf": _chrf}
ANSWER_METRICS = (*_EXAMPLE_METRICS, *_SET_METRICS)
CHOICE_METRICS = ("accuracy", "accuracy_norm")  # as lm-evaluation-harness has them: acc and acc_norm
LIKELIHOOD = "likelihood"
LOSS_METRICS = ("loss", "perplexity", LIKELIHOOD)
EXAMPLE_LOSS, EXAMPLE_TOKENS = "loss", "tokens"  # of each example: what the likelihood of a set follows from
TEXT_METRICS: tuple[str, ...] = (*ANSWER_METRICS, *CHOICE_METRICS, LIKELIHOOD)


def loss_scores(loss: float) -> dict[str, float]:
    """What a mean loss per token says: itself, perplexity, and the likelihood of a token, ``100 exp(-loss)``.

    The likelihood is the geometric mean of the probabilities of the reference's tokens, in percent. It grows with
    quality, so that it can be compared and averaged as scores are.
    """
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), LIKELIHOOD: 100 * math.exp(-loss)}


@dataclass(frozen=True)
class AnswerScores:
    """Scores of written or chosen answers, in percent.

    Attributes:
        metrics: By metric: the score of the whole set.
        per_example: By metric that is a mean over examples: the score of each.
    """

    metrics: dict[str, float]
    per_example: dict[str, tuple[float, ...]]

    @classmethod
    def of_shares(cls, shares: Mapping[str, Sequence[float]], more: Mapping[str, float] | None = None) -> Self:
        """From what each example scores between 0 and 1, and further metrics of the whole set."""
        metrics = {name: 100 * sum(values) / len(values) for name, values in shares.items()}
        per_example = {name: tuple(100.0 * value for value in values) for name, values in shares.items()}
        return cls({**metrics, **(more or {})}, per_example)


def compute_answer_scores(metrics: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """Metrics of written answers.

    Args:
        metrics: Names of ``ANSWER_METRICS``.
        answers: What the model wrote.
        references: What is right.

    Raises:
        OsrmError: If a metric's library is missing, or a reference is not of the metric's kind.
    """
    shares = {name: score(answers, references) for name, score in _EXAMPLE_METRICS.items() if name in metrics}
    more = {name: score(answers, references) for name, score in _SET_METRICS.items() if name in metrics}
    found = AnswerScores.of_shares(shares, more)
    return AnswerScores({name: found.metrics[name] for name in metrics}, found.per_example)
