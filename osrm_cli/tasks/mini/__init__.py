"""Eight small generated tasks that ship with the package.

They have the shapes of the eight GLUE tasks (one sentence or two; two classes, three, or a score) and nothing else of
theirs: each is written by a small grammar of its own, over a vocabulary of its own, from a fixed seed.

Two habits of the grammars make the tasks neither trivial nor hopeless for a small encoder after a minute's training:

- One word or phrase in three occurs in dev alone, so counting words is not enough; knowing what they mean is.
- A pair starts from one side of its contrast more often than from the other. Whoever only notices the contrast is right
  on the usual pairs; the others have to be compared. Labels themselves are never wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.mini import pairs, reasoning, sentences
from osrm_cli.tasks.mini.draw import Draw

MINI_SIZES = {"train": 256, "dev": 200}
MINI_SPLITS = tuple(MINI_SIZES)

MiniRow = dict[str, str | int | float]


@dataclass(frozen=True)
class MiniTask:
    """One generated task.

    Attributes:
        name: Starts with ``mini-``.
        columns: Text columns of a row, in order.
        labels: Names of the classes by index; ``None`` for a score from 0 to 5.
        metrics: What it is judged by, the headline metric first.
        summary: One line for people.
        generate: Writes the texts of one example with the given label.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    summary: str
    generate: Callable[[Draw, int], tuple[str, ...]]


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

MINI_TASKS = (
    MiniTask(
        "mini-grammar",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews",),
        "generated: is the sentence grammatical?",
        sentences.grammar,
    ),
    MiniTask(
        "mini-mood",
        ("sentence",),
        ("negative", "positive"),
        ("accuracy",),
        "generated: is the guest pleased?",
        sentences.mood,
    ),
    MiniTask(
        "mini-paraphrase",
        _PAIR,
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        "generated: do two pieces of business news say the same?",
        pairs.paraphrase,
    ),
    MiniTask(
        "mini-duplicate",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        "generated: do two questions about a computer ask the same?",
        pairs.duplicate,
    ),
    MiniTask(
        "mini-similarity",
        _PAIR,
        None,
        ("pearson", "spearman"),
        "generated: how much do two sports scenes have in common, from 0 to 5?",
        pairs.similarity,
    ),
    MiniTask(
        "mini-inference",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        "generated: does the hypothesis about a traveller follow, stay open, or clash?",
        reasoning.inference,
    ),
    MiniTask(
        "mini-answer",
        ("question", "sentence"),
        _ENTAILMENT,
        ("accuracy",),
        "generated: does the sentence answer the question about a building?",
        reasoning.answer,
    ),
    MiniTask(
        "mini-entail",
        _PAIR,
        _ENTAILMENT,
        ("accuracy",),
        "generated: does the second sentence about an animal follow from the first?",
        reasoning.entail,
    ),
)


def load_mini_rows(name: str, split: str) -> list[MiniRow]:
    """The examples of one split, always the same: the text columns and ``label``.

    Labels are class indices, balanced, or scores. No example occurs twice, in one split or across both.

    Raises:
        OsrmError: If there is no such task or split.
    """
    task = next((task for task in MINI_TASKS if task.name == name), None)
    if task is None:
        known = ", ".join(task.name for task in MINI_TASKS)
        raise OsrmError(f"no generated task is called '{name}'", f"there are: {known}")
    if split not in MINI_SPLITS:
        raise OsrmError(f"{name} has no split '{split}'", f"there are: {', '.join(MINI_SPLITS)}")
    seen: set[tuple[str, ...]] = set()
    return [_split(task, each, seen) for each in MINI_SPLITS][MINI_SPLITS.index(split)]


def _split(task: MiniTask, split: str, seen: set[tuple[str, ...]]) -> list[MiniRow]:
    draw = Draw(f"{task.name} {split}", every_word=split != "train")
    kinds = 6 if task.labels is None else len(task.labels)
    found: list[MiniRow] = []
    while len(found) < MINI_SIZES[split]:
        label = len(found) % kinds
        texts = task.generate(draw, label)
        if texts not in seen:
            seen.add(texts)
            found.append(
                {**dict(zip(task.columns, texts, strict=True)), "label": float(label) if task.labels is None else label}
            )
    return draw.shuffled(found)
