"""Run all benchmarks, store their rows as JSON, and rewrite the pages that show them, see ``pages.py``.

Each script also runs alone, as ``python -m benchmarks.NAME``. With GLUE in a folder, with the generated tasks, to see
whether everything runs, or some of it:

    python -m benchmarks --data FOLDER
    python -m benchmarks
    python -m benchmarks --quick
    python -m benchmarks --only merge --only ties
"""

import importlib
import time

from benchmarks import pages, report


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--only", action="append", choices=pages.SCRIPTS, help="run this one; repeat for more")
    setting = parser.parse_args()
    setting.repeats = 1 if setting.quick else setting.repeats
    for name in setting.only or pages.SCRIPTS:
        start = time.perf_counter()
        module = importlib.import_module(f"benchmarks.{name}")
        report.run(name, module.measure, module.__doc__ or "", setting)
        print(f"\n{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if not setting.quick:
        pages.write()


if __name__ == "__main__":
    main()
