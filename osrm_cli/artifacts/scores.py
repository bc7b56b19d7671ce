"""``scores.json``: what ``eval`` found, each task beside its single adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osrm_cli.artifacts.adapter import Adapter
from osrm_cli.errors import OsrmError

NAME = "scores.json"


@dataclass(frozen=True)
class Score:
    """One task's result; every number in percent, as GLUE gives them.

    Attributes:
        metrics: The task's metrics; those of a second dev set (mnli's mismatched) are named after it.
        headline: The mean of the task's metrics on its first set.
        single: The single adapter's headline on the same examples, if it is known.
        examples: Number of examples scored.
        sha256: Digest of those examples.
    """

    metrics: Mapping[str, float]
    headline: float
    single: float | None
    examples: int
    sha256: str

    @property
    def ratio(self) -> float | None:
        """The headline as a share of the single adapter's, in percent; none where that is not above zero."""
        return 100 * self.headline / self.single if self.single and self.single > 0 else None


def summary(found: Mapping[str, Score]) -> dict[str, Any]:
    """Tasks and their average, as JSON has them; an average is there when every task has the number."""
    rows = {task: {**asdict(score), "ratio": score.ratio} for task, score in found.items()}
    return {
        "tasks": rows,
        "average": {key: _mean([row[key] for row in rows.values()]) for key in ("headline", "single", "ratio")},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def rounded(answers: Sequence[float]) -> tuple[float, ...]:
    """Classes as they are, scores to four decimals: predictions and labels as JSON has them."""
    return tuple(round(answer, 4) for answer in answers)


def source(adapter: Adapter) -> dict[str, Any]:
    """An adapter as scores name it: where it lies, the start that it was trained from, how, and its drift.

    What this program has not recorded is ``None``.
    """
    facts = adapter.facts
    return {
        "path": adapter.source,
        "sha256": adapter.sha256(),
        "start": facts.get("start"),
        "train": facts.get("settings") if facts.get("command") == "train" else None,
        "drift": _drift(adapter.folder),
    }


def _drift(folder: Path) -> float | None:
    """How far A moved in training, as ``osrm train`` recorded it."""
    try:
        found = json.loads((folder / "training.json").read_text(encoding="utf-8"))["drift"]["overall"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) else None


def read(path: Path) -> dict[str, Any]:
    """A scores file, or the one in a folder.

    Raises:
        OsrmError: If it is missing or damaged.
    """
    file = path / NAME if path.is_dir() else path
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return {**facts, "tasks": dict(facts["tasks"]), "average": dict(facts["average"])}
    except FileNotFoundError:
        raise OsrmError(f"{file} is missing", f"make it with 'osrm eval {file.parent}'") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OsrmError(
            f"{file} cannot be read: {error!r}", f"make it anew with 'osrm eval {file.parent} --overwrite'"
        ) from None
