"""Run all benchmarks and write one table, ``results/README.md``, which the project's README shows too.

Each script also runs alone, as ``python -m benchmarks.NAME``. With GLUE in a folder, with the generated tasks, to see
whether everything runs, or some of it:

    python -m benchmarks --data FOLDER
    python -m benchmarks
    python -m benchmarks --quick
    python -m benchmarks --only merge --only ties
"""

import importlib
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import report, timing

SCRIPTS = ("start_up", "collect", "init", "train", "penalty", "merge", "ties", "evaluate", "memory", "growth")
MARKS = ("<!-- benchmarks: rewritten by python -m benchmarks -->\n", "<!-- end of benchmarks -->\n")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--only", action="append", choices=SCRIPTS, help="run this one; repeat for more")
    setting = parser.parse_args()
    setting.repeats = 1 if setting.quick else setting.repeats
    for name in setting.only or SCRIPTS:
        start = time.perf_counter()
        module = importlib.import_module(f"benchmarks.{name}")
        report.run(name, module.measure, module.__doc__ or "", setting)
        print(f"\n{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if not setting.quick:
        write_summary([name for name in SCRIPTS if (report.RESULTS / f"{name}.json").is_file()])


def write_summary(names: Sequence[str]) -> None:
    """Every row that has a goal, in one table: in ``results/README.md`` and between the marks of the README."""
    found = ((name, row) for name in names for row in report.load(name))
    rows = [replace(row, what=f"{name}: {row.what}") for name, row in found if row.goal is not None]
    facts = timing.machine()
    heading = (
        f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}. Medians; a "
        "ratio is the median over rounds in which all ran in turn. All figures, and what was compared: "
        "[benchmarks/results](benchmarks/results); why goals are missed: [benchmarks](benchmarks/README.md)."
    )
    text = f"{heading}\n\n{report.table(rows, differences=False)}\n"
    here = text.replace("(benchmarks/results)", "(.)").replace("(benchmarks/README", "(../README")
    (report.RESULTS / "README.md").write_text(here, encoding="utf-8")
    readme = timing.ROOT / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if start and end:
        readme.write_text(before + start + text + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
