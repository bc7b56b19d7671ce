"""Draw lines of code for a test of the layout: can somebody who knows the list of files alone say where a line is?

python scripts/draw_lines.py SEED [COUNT]

Prints the files, then lines of code drawn at random (no comments, no docstrings), each within its function, and at the
end, after a line of dashes, where they are.
"""

import ast
import io
import random
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "osrm_cli"
LONGEST = 60  # lines of a function that are shown whole; of longer ones, and outside functions, those around the line
AROUND = 12


@dataclass(frozen=True)
class Line:
    """A line of code: its file, its number and the lines to show with it, numbered from 1."""

    path: str
    number: int
    text: str
    surroundings: str


def read_lines(path: Path) -> list[Line]:
    """Every line of a file that holds a name and is no docstring."""
    source = path.read_text(encoding="utf-8")
    lines, nodes = source.splitlines(), list(ast.walk(ast.parse(source)))
    docstrings = {
        number
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    numbers = {token.start[0] for token in tokens if token.type == tokenize.NAME} - docstrings
    spans = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    found = []
    for number in sorted(numbers):
        around = [span for span in spans if span[0] <= number <= span[1]]
        first, last = max(around, default=(1, len(lines)))
        if not around or last - first > LONGEST:
            first, last = max(first, number - AROUND), min(last, number + AROUND)
        shown = "\n".join(lines[first - 1 : last])
        found.append(Line(path.relative_to(PACKAGE).as_posix(), number, lines[number - 1].strip(), shown))
    return found


def main() -> None:
    """Draw and print."""
    seed, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    paths = sorted(PACKAGE.rglob("*.py"))
    drawn = random.Random(seed).sample([line for path in paths for line in read_lines(path)], count)
    print(*(path.relative_to(PACKAGE).as_posix() for path in paths), sep="\n")
    for index, line in enumerate(drawn, 1):
        print(f"\n{index}. {line.text}\n\n{line.surroundings}")
    print("\n" + "-" * 80)
    for index, line in enumerate(drawn, 1):
        print(f"{index}. {line.path}:{line.number}")


if __name__ == "__main__":
    main()
