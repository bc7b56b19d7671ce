"""Tasks and their examples, from the hub, the built-in generator, or a folder of files."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks import glue, parsing
from osrm_cli.tasks.glue import GLUE
from osrm_cli.tasks.readers import SPLITS, Row, find, read
from osrm_cli.tasks.task import Data, Example, Label, Task
from osrm_cli.tasks.task_file import Facts, check_metrics, complete, infer, read_toml


@dataclass(frozen=True)
class _Table:
    """Rows, and what is needed to make examples of them."""

    task: Task
    label_column: str
    codes: bool  # the rows may hold a class's index instead of its name
    source: str
    rows: Sequence[Row]


def names(data: str | Path) -> list[str]:
    """The tasks of a source.

    Raises:
        OsrmError: If it is a folder that is missing or holds none.
    """
    if str(data) == "hub":
        return list(GLUE)
    if str(data) == "mini":
        from osrm_cli.tasks import mini

        return [task.name for task in mini.MINI_TASKS]
    folder = Path(data)
    if not folder.is_dir():
        raise OsrmError(
            f"no data folder {folder}", "--data takes 'hub', 'mini', or a folder that holds TASK/train.jsonl"
        )
    found = sorted(each.name for each in folder.iterdir() if each.is_dir() and _files(each))
    if not found:
        raise OsrmError(f"{folder} holds no tasks", "put each task's files into a folder of its own: TASK/train.jsonl")
    return found


def splits(name: str, data: str | Path) -> tuple[str, ...]:
    """The splits that a task has, named as files are: ``train``, ``dev``, for mnli ``dev_matched`` and so on.

    Raises:
        OsrmError: If the source has no such task.
    """
    known = names(data)
    if name not in known:
        nearest = sorted(known, key=lambda each: -difflib.SequenceMatcher(None, name.lower(), each.lower()).ratio())
        raise OsrmError(f"unknown task '{name}' in {data}", f"there are: {', '.join(nearest)}")
    if str(data) == "hub":
        return glue.splits(name)
    if str(data) == "mini":
        from osrm_cli.tasks import mini

        return mini.SPLITS
    return tuple(_files(Path(data, name)))


def load(name: str, data: str | Path, split: str, limit: int | None = None) -> Data:
    """Read one split.

    Args:
        name: The task.
        data: ``hub``, ``mini``, or a folder with ``<task>/<split>.*``.
        split: ``train``, ``dev``, ``test``; ``dev`` is the matched one for a task that has two.
        limit: Read no more than the first so many examples.

    Raises:
        OsrmError: If there is no such task or split, or if a row cannot be used.
    """
    actual = _actual(name, data, split)
    source = {"hub": _hub, "mini": _mini}.get(str(data))
    table = source(name, actual, limit) if source else _folder(Path(data, name), actual, limit)
    return Data(table.task, split, _examples(table, split), table.source)


def unlabelled(task: Task, data: str | Path, split: str) -> Data:
    """Read the texts of one split; labels are not looked at and need not be there.

    Args:
        task: The task, with the columns to read.
        data: As for ``load``.
        split: As for ``load``.

    Raises:
        OsrmError: If there is no such task or split, or if a row's texts cannot be used.
    """
    actual = _actual(task.name, data, split)
    if source := {"hub": _hub, "mini": _mini}.get(str(data)):
        table = source(task.name, actual, None)
        rows, path = table.rows, table.source
    else:
        path = str(_files(Path(data, task.name))[actual])
        rows = read(Path(path))
    return Data(task, split, tuple(Example(texts, None) for texts in parsing.texts(rows, task.columns, path)), path)


def _actual(name: str, data: str | Path, split: str) -> str:
    """The split that is meant: of a task that has two, the matched one."""
    held = splits(name, data)
    actual = next((each for each in (split, f"{split}_matched") if each in held), None)
    if actual is None:
        raise OsrmError(f"task '{name}' in {data} has no split '{split}'", f"there are: {', '.join(held)}")
    return actual


def sample(data: Data, k: int, seed: int) -> Data:
    """Draw ``k`` examples, or all when there are fewer; a smaller draw is the beginning of a larger one.

    Each example's place comes from a hash of seed, task and index, which no version of Python or numpy can change.
    """
    prefix = f"{seed}\0{data.task.name}\0{data.split}\0"
    order = sorted(range(len(data.examples)), key=lambda i: hashlib.sha256(f"{prefix}{i}".encode()).digest())
    return Data(data.task, data.split, tuple(data.examples[i] for i in order[:k]), data.source)


def _hub(name: str, split: str, limit: int | None) -> _Table:
    source = f"{glue.HUB}/{name}/{split}"
    return _Table(Task(name, **GLUE[name]), "label", True, source, _numbered(glue.rows(name, split, limit)))


def _mini(name: str, split: str, limit: int | None) -> _Table:
    from osrm_cli.tasks import mini

    task = next(task for task in mini.MINI_TASKS if task.name == name)
    rows = _numbered(mini.rows(name, split)[:limit])
    return _Table(Task(name, task.columns, task.labels, task.metrics), "label", True, f"mini/{name}/{split}", rows)


def _numbered(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [Row(number, dict(row)) for number, row in enumerate(rows, 1)]


def _files(folder: Path) -> dict[str, Path]:
    return {split: path for split in SPLITS if (path := find(folder, split))}


def _folder(folder: Path, split: str, limit: int | None) -> _Table:
    """A task of a folder; only one that has to be inferred reads its training rows for that."""
    files = _files(folder)
    toml = folder / "task.toml"
    told: Facts = {**GLUE.get(folder.name, {}), **read_toml(toml)}
    if told.keys() >= {"columns", "labels"}:
        rows = read(files[split], limit)
        facts = complete(told, rows)
    else:
        if "train" not in files:
            raise OsrmError(f"{folder} has no train.* to infer the task from", f"say columns and labels in {toml}")
        train = read(files["train"])
        facts = infer(told, train, str(files["train"]))
        rows = train[:limit] if split == "train" else read(files[split], limit)
    if toml.is_file():
        check_metrics(facts, toml)
    column = facts.pop("label_column")
    return _Table(Task(folder.name, **facts), column, bool(told.get("labels")), str(files[split]), rows)


def _examples(table: _Table, split: str) -> tuple[Example, ...]:
    task, rows, source = table.task, table.rows, table.source
    labels: Iterable[Label | None]
    if split.startswith("test") and parsing.unlabelled(rows, table.label_column):
        labels = [None] * len(rows)
    elif task.labels is None:
        labels = parsing.scores(rows, table.label_column, source)
    else:
        labels = parsing.classes(rows, table.label_column, task.labels, table.codes, source)
    return tuple(map(Example, parsing.texts(rows, task.columns, source), labels))
