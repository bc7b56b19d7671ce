"""``scores.json``: what ``eval`` found, each task beside its single adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.training_record import describe_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.storage import provenance

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
        predictions: Classes or scores on the first set, see ``rounded``.
        labels: The truth.
    """

    metrics: Mapping[str, float]
    headline: float
    single: float | None
    examples: int
    sha256: str
    predictions: tuple[float, ...] = ()
    labels: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """The headline as a share of the single adapter's, in percent; none where that is not above zero."""
        return 100 * self.headline / self.single if self.single and self.single > 0 else None


def summary(found: Mapping[str, Score]) -> dict[str, Any]:
    """Tasks and their average, as JSON has them; an average is there when every task has the number."""
    rows = {task: _row(score) for task, score in found.items()}
    return {
        "tasks": rows,
        "average": {key: _mean([row[key] for row in rows.values()]) for key in ("headline", "single", "ratio")},
    }


def _row(score: Score) -> dict[str, Any]:
    long = ("predictions", "labels")
    return {name: value for name, value in asdict(score).items() if name not in long} | {"ratio": score.ratio}


def answers(found: Mapping[str, Score]) -> dict[str, Any]:
    """Predictions and labels by task, as JSON has them."""
    return {
        "predictions": {task: list(score.predictions) for task, score in found.items()},
        "labels": {task: list(score.labels) for task, score in found.items()},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def rounded(answers: Sequence[float]) -> tuple[float, ...]:
    """Classes as they are, scores to the digits that float32 has: predictions and labels as JSON has them."""
    return tuple(answer if isinstance(answer, int) else float(f"{answer:.9g}") for answer in answers)


def made(folder: Path) -> dict[str, Any]:
    """How what is scored was made: its adapters, the method with its options, and whether its heads were calibrated."""
    facts = provenance.read_record(folder)
    if "form" not in facts:
        adapter = Adapter.open(folder)
        return {
            "adapters": {adapter.name: describe_adapter(adapter)},
            "method": None,
            "options": {},
            "calibrated": False,
        }
    return {
        "adapters": {row["task"]: _merged_from(row) for row in facts["inputs"]},
        "method": facts["settings"]["method"],
        "options": facts["settings"]["options"],
        "calibrated": "calibration" in facts,
    }


def _merged_from(row: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter as a merged folder recorded it, with what it says of itself if it is still there."""
    try:
        found = describe_adapter(Adapter.open(row["path"]))
    except OsrmError:
        found = {}
    known = found if found.get("sha256") == row["sha256"] else {}
    return {"start": None, "train": None, "drift": None, **known, "path": row["path"], "sha256": row["sha256"]}


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
