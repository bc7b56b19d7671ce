"""Seeded choices that come out the same on every platform and every Python."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

HELD_OUT = 3
"""One word in this many is kept for the dev split."""


class Draw:
    """A stream of choices, fixed by its key.

    Only ``random.Random.random`` is used: Python promises its sequence for a given seed, but not that of ``choice``,
    ``sample`` or ``shuffle``.

    Args:
        key: Names the stream; equal keys give equal choices.
        every_word: Whether :meth:`word` may draw the held-out words as well.
    """

    def __init__(self, key: str, every_word: bool) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311
        self._every_word = every_word

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return self._random.random() < probability

    def one(self, items: Sequence[T]) -> T:
        """One of ``items``, all equally likely."""
        return items[int(self._random.random() * len(items))]

    def other(self, items: Sequence[T], than: T) -> T:
        """One of ``items`` that is not ``than``."""
        return self.one([item for item in items if item != than])

    def word(self, words: str) -> str:
        """One of the comma-separated ``words``; in train, none of the held-out ones."""
        return self.one(self._allowed(words))

    def other_word(self, words: str, than: str) -> str:
        """Like :meth:`word`, but not ``than``."""
        return self.other(self._allowed(words), than)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in a random order."""
        return [item for _, _, item in sorted((self._random.random(), place, item) for place, item in enumerate(items))]

    def _allowed(self, words: str) -> list[str]:
        every = [word.strip() for word in words.split(",")]
        return every if self._every_word else [word for place, word in enumerate(every, 1) if place % HELD_OUT]
