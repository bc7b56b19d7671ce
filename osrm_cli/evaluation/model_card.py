"""Scores in the model card of a merged folder: the hub's ``model-index``, and a table for people."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from osrm_cli.evaluation.scores import TaskScores

_BEGIN, _END = "<!-- scores of osrm eval -->", "<!-- end of scores -->"
_HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr", "micro_f1": "f1"}


def card_with_scores(text: str, name: str, scores: TaskScores, split: str) -> str:
    """A model card with scores, in place of those that it has.

    Args:
        text: The card.
        name: Name of the model.
        scores: Scores by task.
        split: The split that they were measured on.
    """
    card = ModelCard(card_without_scores(text))
    data: Any = card.data
    data.model_name, data.eval_results = name, _eval_results(scores, split)
    card.text = card.text.rstrip("\n") + "\n\n" + _make_score_table(scores, split)
    return str(card)


def card_without_scores(text: str) -> str:
    """A model card without the scores that ``card_with_scores`` has put into it."""
    if _BEGIN not in text:
        return text
    card = ModelCard(text)
    data: Any = card.data
    data.model_name = data.eval_results = None
    old = re.escape(_BEGIN) + ".*?" + re.escape(_END) + "\n?"
    card.text = re.sub(old, "", card.text, flags=re.S).rstrip("\n") + "\n"
    return str(card)


def _eval_results(scores: TaskScores, split: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation" if score.text else "text-classification",
            dataset_type=task,
            dataset_name=task,
            dataset_split=split,
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=round(value, 2),
        )
        for task, score in scores.items()
        for metric, value in score.metrics.items()
    ]


def _make_score_table(scores: TaskScores, split: str) -> str:
    rows = [
        f"| {task} | {', '.join(f'{name} {value:.2f}' for name, value in score.metrics.items())} | "
        f"{'-' if score.single is None else f'{score.single:.2f}'} | {score.examples} |"
        for task, score in scores.items()
    ]
    head = ["| task | scores | single adapter | examples |", "| --- | --- | --- | --- |"]
    return "\n".join([_BEGIN, f"## Scores ({split}, in percent)", "", *head, *rows, "", _END]) + "\n"
