"""Interface through which long-running work reports its progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Description, total and unit -> context manager whose value is the function that advances the bar.
Advance = Callable[[int], None]
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]


def no_progress(_what: str, _total: int, _unit: str) -> AbstractContextManager[Advance]:
    """Show nothing."""
    return nullcontext(lambda _count: None)
