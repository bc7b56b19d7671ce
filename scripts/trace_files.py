"""Count the files that one ``osrm`` command runs through: how often a reader who follows it turns to another file.

    python scripts/trace_files.py eval merged --overwrite
    python scripts/trace_files.py --order --save trace.json report sweeps --overwrite

A *stay* begins whenever a function is called that lies in another file of the package than the function called before
it; a *return* is a stay in a file that was already left. Two sequences of stays are counted:

- *every call* as the program runs: loops repeat what they repeat;
- *first calls*: each pair of a calling file and a called file counts once, where it first occurs.

Functions are what counts: neither the import of a module, nor a generator that goes on, nor a comprehension, nor coming
back to a caller. Only the main thread is watched.
"""

import argparse
import dis
import json
import shlex
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import CO_GENERATOR, CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


class Trace:
    """A profile function that writes down the files in which functions are called.

    Attributes:
        stays: Files in the order of every call, each once for calls in a row.
        first: Likewise, of the calls that are the first between two files.
    """

    def __init__(self, root: Path) -> None:
        self.stays: list[str] = []
        self.first: list[str] = []
        self._root = f"{root}/"
        self._pairs: set[tuple[str | None, str]] = set()
        self._importing = 0

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """What ``sys.setprofile`` calls."""
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(self._root):
            return
        if code.co_name == "<module>":
            self._importing += 1 if event == "call" else -1
        elif event == "call" and not self._importing and _is_function(code) and not _goes_on(frame):
            self._enter(self._file(code), self._caller(frame))

    def figures(self) -> dict[str, Any]:
        """Both counts, and the order of the first calls."""
        return {
            "files": len(set(self.stays)),
            "every call": {"stays": len(self.stays), "returns": len(self.stays) - len(set(self.stays))},
            "first calls": {"stays": len(self.first), "returns": len(self.first) - len(set(self.first))},
            "order": self.first,
        }

    def _enter(self, file: str, caller: str | None) -> None:
        _go(self.stays, file)
        if file != caller and (caller, file) not in self._pairs:
            self._pairs.add((caller, file))
            _go(self.first, file)

    def _caller(self, frame: FrameType) -> str | None:
        above = frame.f_back
        while above and not above.f_code.co_filename.startswith(self._root):
            above = above.f_back
        return self._file(above.f_code) if above else None

    def _file(self, code: CodeType) -> str:
        return code.co_filename.removeprefix(self._root)


def main() -> None:
    """Run the command and print what it ran through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", action="store_true", help="Also print the files in the order of the first calls.")
    parser.add_argument("--save", type=Path, help="JSON file that takes the figures of this command beside others'.")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="What follows 'osrm'.")
    given = parser.parse_args()
    (program,) = entry_points(group="console_scripts", name="osrm")
    package = import_module(program.module.partition(".")[0])
    trace = Trace(Path(package.__path__[0]))
    code = _run(program.load(), given.words, trace)
    figures = trace.figures()
    line = shlex.join(given.words)
    _print(line, figures, given.order)
    if given.save:
        held = json.loads(given.save.read_text()) if given.save.exists() else {}
        given.save.write_text(json.dumps({**held, line: figures}, indent=1) + "\n")
    sys.exit(code)


def _run(program: Any, words: list[str], trace: Trace) -> int:
    sys.argv = ["osrm", *words]
    sys.setprofile(trace)
    try:
        program()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.setprofile(None)
    return 0


def _print(line: str, figures: dict[str, Any], order: bool) -> None:
    print(f"osrm {line}", f"  {figures['files']} files", sep="\n")
    for kind in ("every call", "first calls"):
        print(f"  {kind}: {figures[kind]['stays']} stays, {figures[kind]['returns']} returns")
    if order:
        print(*(f"    {file}" for file in figures["order"]), sep="\n")


def _go(stays: list[str], file: str) -> None:
    if not stays or stays[-1] != file:
        stays.append(file)


def _is_function(code: CodeType) -> bool:
    """Whether it is a function's, not a class's body or a comprehension's."""
    return bool(code.co_flags & CO_OPTIMIZED) and code.co_name not in COMPREHENSIONS


def _goes_on(frame: FrameType) -> bool:
    """Whether a generator runs on from a ``yield``."""
    return bool(frame.f_code.co_flags & CO_GENERATOR) and frame.f_lasti > _beginning(frame.f_code)


@cache
def _beginning(code: CodeType) -> int:
    """Where a generator's body begins in its code."""
    return next(step.offset for step in dis.get_instructions(code) if step.opname == "RESUME")


if __name__ == "__main__":
    main()
