"""Progress of long work, whatever shows it."""

from collections.abc import Callable
from contextlib import AbstractContextManager

# What, how many, of which unit -> the function that advances the bar.
Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
