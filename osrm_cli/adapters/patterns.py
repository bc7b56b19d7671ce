"""Regular expressions over layer names, as PEFT reads them: checked before they run, so that none takes forever.

A file from elsewhere may hold an expression whose matching time grows exponentially with the length of a name. Python's
engine cannot be stopped, so such expressions are refused by their form.
"""

import functools
import re
import warnings

MAX_LENGTH = 10_000  # characters
MAX_REPETITIONS = 5  # unbounded ones in a row: matching takes at most about the length of a name to this power

_QUANTIFIER = re.compile(r"([*+?]|\{\d*,?\d*\})[?+]?")
_AT_MOST_ONE = ("", "?", "{0}", "{1}", "{0,1}", "{,1}", "{1,1}")
_BACK_REFERENCE = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")


def pattern_matches(pattern: str, layer: str) -> bool:
    """Whether an expression matches a layer: it must match the end of the name, from a dot on."""
    return _compile_pattern(pattern).match(layer) is not None


@functools.lru_cache(4096)
def _compile_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def check_pattern(pattern: str, is_whole: bool = False) -> str:
    """Check that an expression can be compiled and matched in bounded time.

    Args:
        pattern: The expression.
        is_whole: Whether it has to match a whole name, as ``target_modules`` does, rather than the end of one.

    Returns:
        The expression.

    Raises:
        ValueError: If not, saying why.
    """
    shown = repr(pattern if len(pattern) <= 60 else f"{pattern[:57]}...")
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"the regular expression {shown} has more than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what later versions of Python will read otherwise
            re.compile(pattern)
            if not is_whole:
                _compile_pattern(pattern)
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"{shown} is not a regular expression: {error}") from None
    if _BACK_REFERENCE.search(pattern) or "(?x" in pattern:
        raise ValueError(f"the regular expression {shown} refers back to a group or is verbose, which is not supported")
    repetitions, _ = _PatternScanner(pattern, shown).scan()
    if repetitions > MAX_REPETITIONS:
        raise ValueError(f"the regular expression {shown} has more than {MAX_REPETITIONS} repetitions in a row")
    return pattern


class _PatternScanner:
    """Counts the repetitions of an expression that Python has compiled, and refuses those inside each other."""

    def __init__(self, pattern: str, shown: str) -> None:
        self._pattern, self._shown, self._position = pattern, shown, 0

    def scan(self) -> tuple[int, bool]:
        """Read up to the end of a group: its repetitions in a row, and whether it holds one or alternatives."""
        longest = current = 0
        varied = False
        while self._position < len(self._pattern) and self._pattern[self._position] != ")":
            if self._pattern[self._position] == "|":
                longest, current, varied = max(longest, current), 0, True
                self._position += 1
                continue
            repetitions, is_varied = self._read_atom()
            quantifier = self._read_quantifier()
            if quantifier not in _AT_MOST_ONE:
                if is_varied:
                    raise ValueError(
                        f"the regular expression {self._shown} repeats a group that holds a repetition or "
                        "alternatives, which can take forever to match"
                    )
                repetitions += 1
            current, varied = current + repetitions, varied or is_varied or quantifier not in ("", "{1}")
        self._position += 1  # the bracket that closes the group
        return max(longest, current), varied

    def _read_atom(self) -> tuple[int, bool]:
        first = self._pattern[self._position]
        self._position += 2 if first == "\\" else 1
        if first == "(":
            return self.scan()
        if first == "[":
            self._position += self._pattern.startswith("^", self._position)
            self._position += self._pattern.startswith("]", self._position)
            while self._pattern[self._position] != "]":
                self._position += 2 if self._pattern[self._position] == "\\" else 1
            self._position += 1
        return 0, False

    def _read_quantifier(self) -> str:
        """Skip and return what says how often the atom before comes; nothing for once."""
        quantifier = _QUANTIFIER.match(self._pattern, self._position)
        if not quantifier or quantifier[1] in ("{}", "{,}"):  # braces without numbers are literal
            return ""
        self._position = quantifier.end()
        return quantifier[1]
