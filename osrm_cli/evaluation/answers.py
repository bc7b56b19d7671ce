"""Score what a language model writes or chooses, and how likely it finds the references."""

from collections.abc import Mapping, Sequence

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.completions import CompletionTokenizer
from osrm_cli.models.text.generation import CompletionLosses
from osrm_cli.models.token_batches import IGNORED, Encoding
from osrm_cli.progress import Progress
from osrm_cli.tasks.metrics import primary_score
from osrm_cli.tasks.task import Task, TextExample
from osrm_cli.tasks.text.metrics import (
    ANSWER_METRICS,
    EXAMPLE_LOSS,
    EXAMPLE_TOKENS,
    LIKELIHOOD,
    AnswerScores,
    compute_answer_scores,
)


def score_answers(
    backbone: TextBackbone,
    model: torch.nn.Module,
    task: Task,
    examples: Sequence[TextExample],
    encodings: Sequence[Encoding],
    completions: CompletionTokenizer,
    batch_size: int,
    progress: Progress,
) -> tuple[AnswerScores, list[str]]:
    """Let a model answer prompts: exact match and the task's own metrics, and the answers.

    Where the rows have choices, it chooses, and writes nothing.

    Args:
        backbone: Supplies tokenizer and device.
        model: The backbone's model, perhaps with an update.
        task: Its metrics, longest answer and stop strings; by default as many tokens as the longest reference has.
        examples: Prompts and references.
        encodings: The same as tokens.
        completions: Made them.
        batch_size: Maximum prompts per batch.
        progress: Shows a progress bar.

    Raises:
        OsrmError: If a row has no prompt, or a metric cannot be computed.
    """
    if examples[0].choices:
        return _score_choices(backbone, model, task, examples, completions, batch_size, progress), []
    count = task.max_new_tokens or max(int((encoding["labels"] != IGNORED).sum()) for encoding in encodings)
    prompts = completions.encode_prompts(examples, count)
    if not all(len(prompt["input_ids"]) for prompt in prompts):
        raise OsrmError(
            f"task '{task.name}' has rows of text alone, which have no prompt to answer",
            "score their loss alone: --no-generate",
        )
    with progress(f"generate {task.name}", len(prompts), "answers") as advance:
        answers = backbone.generate(model, prompts, batch_size, count, task.stop, advance)
    names = dict.fromkeys(("exact_match", *(name for name in task.metrics if name in ANSWER_METRICS)))
    return compute_answer_scores(list(names), answers, [example.reference for example in examples]), answers


def _score_choices(
    backbone: TextBackbone,
    model: torch.nn.Module,
    task: Task,
    examples: Sequence[TextExample],
    completions: CompletionTokenizer,
    batch_size: int,
    progress: Progress,
) -> AnswerScores:
    """Share of examples whose right choice is the most likely, by log-likelihood, and by that per character."""
    rows = [example.with_answer(choice) for example in examples for choice in example.choices]
    kept, encodings = completions.encode(rows, with_end=False)
    if len(kept) < len(rows):
        raise OsrmError(f"choices of '{task.name}' are too long", "choose a larger --max-length")
    with progress(f"choices {task.name}", len(encodings), "choices") as advance:
        nll = backbone.losses(model, encodings, batch_size, advance).nll
    hits: dict[str, list[bool]] = {"accuracy": [], "accuracy_norm": []}
    start = 0
    for example in examples:
        own = nll[start : start + len(example.choices)]
        start += len(example.choices)
        right = example.choices.index(example.reference)
        sizes = torch.tensor([len(choice) for choice in example.choices])
        hits["accuracy"].append(int(own.argmin()) == right)
        hits["accuracy_norm"].append(int((own / sizes).argmin()) == right)
    return AnswerScores.of_shares(hits)


def example_losses(losses: CompletionLosses, rows: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """What the likelihood of some examples follows from: loss per token and tokens of each."""
    nll, tokens = losses.nll[list(rows)], losses.tokens[list(rows)]
    return {EXAMPLE_LOSS: tuple((nll / tokens).tolist()), EXAMPLE_TOKENS: tuple(tokens.tolist())}


def make_text_score(
    task: Task, metrics: Mapping[str, float], per_example: Mapping[str, tuple[float, ...]], examples: int
) -> TaskScore:
    """One task's score.

    Args:
        task: Its metrics make the primary score.
        metrics: All that were computed, in percent but for losses.
        per_example: What is known of each example, see ``AnswerScores`` and ``example_losses``; what the primary score
            follows from is kept.
        examples: Number of examples.

    Raises:
        OsrmError: If one of the task's metrics is missing.
    """
    if missing := [name for name in task.metrics if name not in metrics]:
        raise OsrmError(
            f"task '{task.name}' has metric {missing[0]}, which needs rows with choices",
            "correct metrics in its task.toml",
        )
    needed = [name for name in task.metrics if name != LIKELIHOOD]
    needed += [EXAMPLE_LOSS, EXAMPLE_TOKENS] if LIKELIHOOD in task.metrics else []
    known = {name: per_example[name] for name in needed} if set(needed) <= per_example.keys() else {}
    return TaskScore(metrics, primary_score(task, metrics), examples=examples, per_example=known)
