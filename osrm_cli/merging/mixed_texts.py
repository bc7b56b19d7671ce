"""Further texts without labels, each put together from parts of two of a task's own."""

from collections.abc import Sequence

import torch

from osrm_cli import seeding
from osrm_cli.tasks.task import Example


def mix_texts(examples: Sequence[Example], copies: int, seed: int, task: str) -> list[Example]:
    """Further examples, the same ones for the same seed and task; they have no labels.

    Each begins as one of the examples and ends as another one of them, cut between words at the same share of both,
    which is drawn anew. Of pairs, every second one has the first text of one and the second text of the other, whole;
    the others are cut in both texts. What is written without blanks is one word, which is not cut.

    Args:
        examples: The task's, with one or two texts each.
        copies: Further examples for each of them; more of them have those of fewer among them.
        seed: The user's.
        task: Its name.

    Returns:
        ``copies * len(examples)`` examples.
    """
    draw = seeding.generator(seed, "further texts", task, "0")
    mixed = []
    for copy in range(copies):
        for index, example in enumerate(examples):
            texts, others = example.texts, examples[_draw_another(index, len(examples), draw)].texts
            share = float(torch.rand((), generator=draw))
            swaps = len(texts) > 1 and (index + copy) % 2 == 1
            mixed.append((texts[0], *others[1:]) if swaps else _cut_and_join(texts, others, share))
    return [Example(texts, None) for texts in mixed]


def _draw_another(index: int, count: int, draw: torch.Generator) -> int:
    """The index of another example, where there is one."""
    return (index + 1 + int(torch.randint(count - 1, (), generator=draw))) % count if count > 1 else index


def _cut_and_join(texts: Sequence[str], others: Sequence[str], share: float) -> tuple[str, ...]:
    joined = []
    for text, other in zip(texts, others, strict=True):
        first, last = text.split(), other.split()
        joined.append(" ".join(first[: int(share * len(first))] + last[int(share * len(last)) :]) or text)
    return tuple(joined)
