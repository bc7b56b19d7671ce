"""Rows of figures beside their goals, stored as JSON in ``results/``."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks import timing, versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One thing measured, in several rounds.

    Attributes:
        what: What was done.
        ours: Our figure in each round.
        peer: Who did the same, or what no program can beat; nothing if the goal is a plain number.
        theirs: Their figure in each round.
        goal: What the ratio has to reach or the figure must not exceed, see ``kind``.
        kind: ``faster``: theirs / ours is at least the goal; ``within``: ours / theirs is at most the goal; ``below``:
            ours is at most the goal.
        unit: Of the figures; an ``exponent`` stands beside another, and is not divided by it.
        difference: How far our result is from theirs, with what was compared.
    """

    what: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    goal: float | None = None
    kind: Literal["faster", "within", "below"] = "faster"
    unit: str = "s"
    difference: str = ""

    @property
    def ratio(self) -> float | None:
        """The median over the rounds of theirs / ours; of ours / theirs where theirs is a bound."""
        if not self.theirs or self.unit == "exponent":
            return None
        pairs = list(zip(self.ours, self.theirs, strict=True))
        return median(a / b if self.kind == "within" else b / a for a, b in pairs)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; ``None`` without a goal or without the peer."""
        if self.goal is None:
            return None
        if self.kind == "below":
            return median(self.ours) <= self.goal
        if self.ratio is None:
            return None
        return self.ratio >= self.goal if self.kind == "faster" else self.ratio <= self.goal

    def cells(self) -> list[str]:
        """The row of a Markdown table, see ``COLUMNS``."""
        theirs = f"{self.peer}: {_figure(median(self.theirs), self.unit)}" if self.theirs else self.peer
        sign = "at least" if self.kind == "faster" else "at most"
        unit = f" {self.unit}" if self.kind == "below" else ""
        verdict = {True: "met", False: "**missed**", None: "not measured"}[self.met]
        goal = "" if self.goal is None else f"{sign} {self.goal:g}{unit}, {verdict}"
        ratio = "" if self.ratio is None else f"{self.ratio:.{2 if self.ratio < 10 else 0}f}"
        return [self.what, _figure(median(self.ours), self.unit), theirs, ratio, goal]


COLUMNS = ("what", "ours", "beside", "ratio", "goal")


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        folder: An empty folder to work in.
        quick: Sizes at which a run shows that it works, and nothing else.
        repeats: Rounds.
        data: Folder with GLUE, or ``mini``.
    """

    folder: Path
    quick: bool
    repeats: int
    data: str

    @property
    def few(self) -> int:
        """Rounds of what takes a minute each."""
        return max(1, self.repeats // 3)


Measure = Callable[[Setting], Iterable[Row]]


def table(rows: Iterable[Row], differences: bool = True) -> str:
    """A Markdown table."""
    rows = list(rows)
    shown = differences and any(row.difference for row in rows)
    lines = [[*COLUMNS, *(["same result"] if shown else [])]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        lines.append([cell.replace("|", "\\|") for cell in (*row.cells(), *([row.difference] if shown else []))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(name: str, measure: Measure, heading: str, setting: argparse.Namespace) -> list[Row]:
    """Measure in a scratch folder; print the table, and store it unless this is a quick run."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Setting(Path(folder), setting.quick, setting.repeats, setting.data)))
    text = f"{heading.strip()}\n\n{table(rows)}"
    print(text, flush=True)
    if not setting.quick:
        facts = {
            "machine": timing.machine(),
            "peers": versions.installed(row.peer for row in rows if row.theirs),
            "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return rows


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="tiny sizes, nothing stored: does it run?")
    made.add_argument("--repeats", type=int, default=3, help="rounds; a third of them where each takes long")
    made.add_argument("--data", default="mini", help="folder with GLUE's eight tasks; default: the generated ones")
    return made


def script(name: str, measure: Measure, heading: str | None) -> None:
    """What ``python -m benchmarks.NAME`` does."""
    run(name, measure, heading or "", parser(heading).parse_args())


def load(name: str) -> list[Row]:
    """The rows that a script has stored."""
    rows = _load_facts(name)["rows"]
    return [Row(**{key: value for key, value in row.items() if key != "ratio"}) for row in rows]


def load_machine(name: str) -> dict[str, Any]:
    """What a script's figures were measured on, see ``timing.machine``."""
    machine: dict[str, Any] = _load_facts(name)["machine"]
    return machine


def load_peers(name: str) -> dict[str, str]:
    """The versions of the peers that a script has run, see ``versions``; nothing where it has not stored them."""
    peers: dict[str, str] = _load_facts(name).get("peers", {})
    return peers


def _load_facts(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return facts


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:,.0f} s"
    if unit == "MiB":
        return f"{value:,.0f} MiB"
    return f"{value:.2f}"
