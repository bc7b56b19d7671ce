"""Scores of tasks and merges, as ``eval`` and ``sweep`` compute them; ``score_files`` reads their files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCORES_NAME = "scores.json"


@dataclass(frozen=True)
class TextAnswers:
    """What a language model wrote, and how likely it found the references.

    Attributes:
        answers: One for each example; empty if none were written.
        references: The right answers, likewise.
        prompts: Of the first examples, which are shown.
        losses: Mean loss per token of each example.
    """

    answers: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()

    def samples(self) -> list[dict[str, str]]:
        """The first answers beside prompt and reference."""
        rows = zip(self.prompts, self.answers, self.references, strict=False)
        return [{"prompt": prompt, "answer": answer, "reference": reference} for prompt, answer, reference in rows]


@dataclass(frozen=True)
class TaskScore:
    """One task's score on one set of examples; every number in percent, as GLUE gives them.

    Attributes:
        metrics: The task's metrics; those of a second dev set (mnli's mismatched) are named after it.
        headline: The primary score: the mean of the task's metrics on its first set.
        single: The single adapter's primary score on the same examples; ``None`` if unknown.
        examples: Number of examples scored.
        sha256: Digest of those examples; empty if unknown.
        predictions: Classes or scores on the first set; empty if unknown.
        labels: True labels; empty if unknown.
        text: What was written, and losses, where the answer is text.
        per_example: Of text: what the primary score follows from, by metric and example: metrics in percent whose means
            they are; for the likelihood ``loss`` (per token) and ``tokens``. Empty if unknown, and with chrF.
        single_loss: Of text: the single adapter's loss on the same examples; ``None`` if unknown.
        base: Of text: the base model's primary score; ``None`` unless it was scored.
        base_loss: Of text: the base model's loss.
    """

    metrics: Mapping[str, float]
    headline: float
    single: float | None = None
    examples: int = 0
    sha256: str = ""
    predictions: tuple[float, ...] = ()
    labels: tuple[float, ...] = ()
    text: TextAnswers | None = None
    per_example: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    single_loss: float | None = None
    base: float | None = None
    base_loss: float | None = None

    @property
    def has_predictions(self) -> bool:
        """Whether the score of other draws of the examples can be computed."""
        return bool(self.predictions or self.per_example)

    @property
    def loss_ratio(self) -> float | None:
        """The single adapter's loss relative to this one, in percent: losses fall as scores grow."""
        return 100 * self.single_loss / self.metrics["loss"] if self.single_loss is not None else None

    @property
    def kept(self) -> float | None:
        """Share of the single adapter's improvement of the base model's loss, in percent; ``None`` if unknown."""
        if self.single_loss is None or self.base_loss is None or self.base_loss <= self.single_loss:
            return None
        return 100 * (self.base_loss - self.metrics["loss"]) / (self.base_loss - self.single_loss)

    @property
    def ratio(self) -> float | None:
        """Primary score relative to the single adapter's, in percent; ``None`` unless the latter is positive."""
        return 100 * self.headline / self.single if self.single and self.single > 0 else None


TaskScores = Mapping[str, TaskScore]  # by task


@dataclass(frozen=True)
class ScoredMerge:
    """Scores of one merge.

    Attributes:
        method: Name of the merging method.
        options: The options that apply, as ``osrm merge`` records them.
        calibrated: Whether the heads were calibrated.
        test: Scores on the test examples.
        validation: Scores on the validation examples; empty outside a sweep.
        chosen: Whether it is the best of its method on validation.
    """

    method: str
    options: Mapping[str, Any]
    calibrated: bool
    test: TaskScores
    validation: TaskScores = field(default_factory=dict)
    chosen: bool = False


def average(scores: TaskScores) -> float:
    """The mean of the tasks' primary scores."""
    return sum(score.headline for score in scores.values()) / len(scores)


def summarize_scores(scores: TaskScores) -> dict[str, Any]:
    """Tasks and their averages, as in ``scores.json``; an average is ``None`` unless every task has a value."""
    rows = {task: _task_score_dict(score) for task, score in scores.items()}
    keys = ["headline", "single", "ratio"]
    if all(score.text for score in scores.values()):  # losses of different tasks do not add up, shares do
        keys += ["base", "loss_ratio", "kept"]
    return {"tasks": rows, "average": {key: _mean_score([row[key] for row in rows.values()]) for key in keys}}


def _task_score_dict(score: TaskScore) -> dict[str, Any]:
    of_text = ("single_loss", "base", "base_loss")
    omitted = ("predictions", "labels", "text", "per_example", *(() if score.text else of_text))
    row = {name: value for name, value in asdict(score).items() if name not in omitted} | {"ratio": score.ratio}
    if score.text:
        row |= {"loss_ratio": score.loss_ratio, "kept": score.kept, "samples": score.text.samples()}
    return row


def predictions_record(scores: TaskScores) -> dict[str, Any]:
    """Predictions and labels by task, as in ``scores.json``; of text, answers, losses and scores by example."""
    texts = {task: score.text for task, score in scores.items() if score.text}
    classes = {task: score for task, score in scores.items() if not score.text}
    record: dict[str, Any] = {
        "predictions": {task: round_answers(score.predictions) for task, score in classes.items()},
        "labels": {task: list(score.labels) for task, score in classes.items()},
    }
    if texts:
        record["answers"] = {task: list(text.answers) for task, text in texts.items()}
        record["references"] = {task: list(text.references) for task, text in texts.items()}
        record["losses"] = {task: list(text.losses) for task, text in texts.items()}
    return record | example_scores_record(scores)


def example_scores_record(scores: TaskScores) -> dict[str, Any]:
    """What primary scores of text follow from, by task, metric and example; empty where no task has it."""
    found = {task: score.per_example for task, score in scores.items() if score.per_example}
    rounded = {task: {metric: round_answers(values) for metric, values in each.items()} for task, each in found.items()}
    return {"per_example": rounded} if rounded else {}


def _mean_score(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def round_answers(answers: Sequence[float]) -> list[float]:
    """Predictions as in JSON: classes unchanged, scores rounded to the digits of float32."""
    return [answer if isinstance(answer, int) else float(f"{answer:.9g}") for answer in answers]
