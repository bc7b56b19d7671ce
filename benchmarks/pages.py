"""The stored rows as Markdown: a page of the site, and a few rows in the README.

python -m benchmarks.pages
"""

import ast
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.report import Row

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "start_up",
    "collect",
    "collect_large",
    "second_moments",
    "init",
    "train",
    "penalty",
    "merge",
    "ties",
    "beside",
    "as_model",
    "elements",
    "whole",
    "extract",
    "evaluate",
    "memory",
    "growth",
    "offload",
    "text",
    "gpu",
)
MARKS = ("<!-- benchmarks: rewritten by python -m benchmarks.pages -->\n", "<!-- end of benchmarks -->\n")
# The rows that the README shows, a missed goal among them.
SHORT = (
    ("start_up", "`osrm --help`", "mergekit-yaml --help"),
    ("collect", "means", "published loop"),
    ("merge", "`svd`", "PEFT svd, one matrix times 128"),
    ("elements", "`ties`, width 8192", "PEFT ties"),
    ("text", "generate, 24 answers to mini-json", "generate, one by one"),
)


def readme() -> str:
    """The few rows of the README."""
    rows = [
        replace(row, what=f"{name}: {row.what}")
        for name, what, peer in SHORT
        for row in report.load(name)
        if (row.what, row.peer) == (what, peer)
    ]
    return f"{report.table(rows, differences=False)}\n"


def page() -> str:
    """Every row that has a goal in one table, then every script's rows."""
    names = [name for name in SCRIPTS if (report.RESULTS / f"{name}.json").is_file()]
    stored = {name: report.load(name) for name in names}
    rows = [replace(row, what=f"{name}: {row.what}") for name in names for row in stored[name] if row.goal is not None]
    parts = [
        "## Goals",
        "Medians; a ratio is the median over rounds in which all ran in turn. Processors differ: each section names "
        "its own, and figures of two sections are no comparison.",
        report.table(rows, differences=False),
        "## All figures",
        *(part for name in names for part in _section(name, stored[name])),
    ]
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Rewrite both, between their marks."""
    for path, text in ((ROOT / "README.md", readme()), (ROOT / "docs/benchmarks.md", page())):
        path.write_text(between(path.read_text(encoding="utf-8"), text), encoding="utf-8")


def between(document: str, text: str) -> str:
    """A document with other text between its marks.

    Raises:
        ValueError: If it has no marks.
    """
    before, start, rest = document.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError("the document has no marks for benchmarks")
    return before + start + text + end + after


def _section(name: str, rows: list[Row]) -> list[str]:
    module = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    machine = report.load_machine(name)
    place = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}."
    if "gpu" in machine:
        place = f"On an {machine['gpu']}, beside {machine['cores']} cores."
    versions = ", ".join(f"{peer} {version}" for peer, version in report.load_peers(name).items())
    peers = [f"Beside {versions}."] if versions else []
    return [f"### {name}", ast.get_docstring(module) or "", place, *peers, report.table(rows)]


if __name__ == "__main__":
    write()
