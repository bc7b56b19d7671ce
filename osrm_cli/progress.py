"""Progress of long work, whatever shows it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# What, how many, of which unit -> the function that advances the bar.
Advance = Callable[[int], None]
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]


def no_progress(_what: str, _total: int, _unit: str) -> AbstractContextManager[Advance]:
    """Show nothing."""
    return nullcontext(lambda _count: None)
