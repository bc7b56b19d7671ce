"""Files of scores as ``osrm eval`` and ``osrm sweep`` write them, from drawn predictions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osrm_cli.tasks import metrics
from osrm_cli.tasks.task import Task

TASKS = {
    "cola": Task("cola", ("text",), (0, 1), ("matthews",)),
    "mnli": Task("mnli", ("text",), (0, 1, 2), ("accuracy",)),
    "qqp": Task("qqp", ("text",), (0, 1), ("accuracy", "f1")),
    "stsb": Task("stsb", ("text",), None, ("pearson", "spearman")),
}
EXAMPLES = 60


def labels(task: str, examples: int = EXAMPLES) -> list[float]:
    """The truth; the same whenever it is asked for."""
    draw = np.random.default_rng([1, *task.encode()])
    if TASKS[task].regression:
        return draw.uniform(0, 5, examples).round(1).tolist()
    return draw.integers(0, TASKS[task].num_labels, examples).tolist()


def answers(task: str, skill: float, seed: int, examples: int = EXAMPLES) -> list[float]:
    """Predictions that are right with probability ``skill``, else drawn."""
    draw = np.random.default_rng([2, seed, *task.encode()])
    truth = np.array(labels(task, examples))
    right = draw.uniform(size=examples) < skill
    if TASKS[task].regression:
        return np.where(right, truth, draw.uniform(0, 5, examples)).round(4).tolist()
    return np.where(right, truth, draw.integers(0, TASKS[task].num_labels, examples)).tolist()


def scored(skill: float, seed: int, tasks: tuple[str, ...], predictions: bool) -> dict[str, Any]:
    """One set of scores as a sweep has it."""
    found = {task: answers(task, skill, seed) for task in tasks}
    rows = {}
    for task, given in found.items():
        named = metrics.compute_task_scores(TASKS[task], given, labels(task))
        headline = metrics.primary_score(TASKS[task], named)
        rows[task] = {"headline": headline, "metrics": named, "examples": EXAMPLES}
    facts = {"tasks": rows, "average": sum(row["headline"] for row in rows.values()) / len(rows)}
    return facts | ({"predictions": found} if predictions else {})


def adapters(tasks: tuple[str, ...], seed: int, start: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """How the adapters were made."""
    start = {"objective": "kaiming", "rank": 8, "alpha": None, "a_scale": None, "eps": 1e-3, "seed": seed, **start}
    train = {"lr": 4e-4, "epochs": 3, "limit": 2000, "freeze": None, "seed": seed, **train}
    return {
        task: {"path": f"adapters/{task}", "sha256": "0" * 64, "start": start, "train": train, "drift": 0.1 + seed / 50}
        for task in tasks
    }


def sweep(
    path: Path,
    objective: str = "kaiming",
    seed: int = 0,
    gain: float = 0.0,
    tasks: tuple[str, ...] = tuple(TASKS),
    start: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    predictions: bool = True,
    calibrated: bool = False,
    methods: tuple[str, ...] = ("ties",),
    dtype: str = "float32",
) -> Path:
    """Write a sweep of three values of lambda, of which 0.5 is best, ``gain`` better than the baseline's."""
    points, best = [], []
    for method in methods:
        for mark in (False, True)[: 1 + calibrated]:
            for place, scale in enumerate((0.3, 0.5, 0.7)):
                skill = 0.5 + gain + 0.1 * mark - abs(scale - 0.5) + 0.05 * (method == "ties")
                draws = 1000 * seed + 10 * place + 100 * methods.index(method)
                keep = predictions and scale == 0.5
                pair = {
                    "validation": scored(skill, draws + 1, tasks, keep),
                    "test": scored(skill, draws, tasks, keep),
                }
                if scale == 0.5:
                    best.append({"method": method, "calibrated": mark, "point": len(points)})
                points.append({"method": method, "options": {"lambda": scale}, "calibrated": mark, **pair})
    facts = {
        "command": "sweep",
        "settings": {"split": "dev", "validation_split": None, "seed": 0, "dtype": dtype},
        "data": {task: {"source": "data", "sha256": {"dev": f"dev of {task}"}} for task in tasks},
        "adapters": adapters(tasks, seed, {"objective": objective, **(start or {})}, train or {}),
        "single": {
            "validation": scored(0.8, 1000 * seed + 5, tasks, predictions),
            "test": scored(0.8 - gain / 10, 1000 * seed + 5, tasks, predictions),
        },
        "points": points,
        "best": best,
    }
    if predictions:
        facts["labels"] = {"test": {task: labels(task) for task in tasks}}
    return write(path, facts)


def scores(
    path: Path,
    objective: str = "kaiming",
    seed: int = 0,
    skill: float = 0.5,
    tasks: tuple[str, ...] = tuple(TASKS),
    method: str | None = "task-arith",
    options: Mapping[str, Any] | None = None,
    calibrated: bool = False,
    start: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    predictions: bool = False,
) -> Path:
    """Write scores of one merge."""
    facts = scored(skill, 1000 * seed, tasks, predictions)
    single = scored(0.8, 1000 * seed + 5, tasks, False)
    for task, row in facts["tasks"].items():
        row["single"] = single["tasks"][task]["headline"]
        row["sha256"] = f"dev of {task}"
    facts |= {
        "command": "eval",
        "settings": {"split": "dev"},
        "adapters": adapters(tasks, seed, {"objective": objective, **(start or {})}, train or {}),
        "method": method,
        "options": dict({"lambda": 0.3} if options is None else options),
        "calibrated": calibrated,
    }
    if predictions:
        facts["labels"] = {task: labels(task) for task in tasks}
    return write(path, facts)


def write(path: Path, facts: Mapping[str, Any]) -> Path:
    """Write JSON, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    return path
