"""Tasks and their examples, from the hub, the generated tasks of the package, or a folder of files."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.glue import GLUE, GLUE_HUB_ID, list_glue_splits, load_glue_rows
from osrm_cli.tasks.mini import MINI, MINI_FOLDER
from osrm_cli.tasks.parsing import is_unlabelled, parse_classes, parse_scores, parse_texts
from osrm_cli.tasks.readers import SPLIT_STEMS, SourceRow, find_split_file, read_rows
from osrm_cli.tasks.task import Example, Label, Task, TaskSplit
from osrm_cli.tasks.task_file import TaskFields, add_defaults, check_metrics, infer_schema, read_task_file


@dataclass(frozen=True)
class _Table:
    """Rows, and what is needed to make examples of them."""

    task: Task
    label_column: str
    codes: bool  # the rows may hold a class's index instead of its name
    source: str
    rows: Sequence[SourceRow]


def list_tasks(data: str | Path) -> list[str]:
    """The tasks of a source.

    Raises:
        OsrmError: If it is a folder that is missing or holds none.
    """
    if str(data) == "hub":
        return list(GLUE)
    if str(data) == "mini":
        return list(MINI)
    folder = Path(data)
    if not folder.is_dir():
        raise OsrmError(
            f"no data folder {folder}", "--data takes 'hub', 'mini', or a folder that holds TASK/train.jsonl"
        )
    found = sorted(each.name for each in folder.iterdir() if each.is_dir() and _find_split_files(each))
    if not found:
        raise OsrmError(f"{folder} holds no tasks", "put each task's files into a folder of its own: TASK/train.jsonl")
    return found


def list_splits(name: str, data: str | Path) -> tuple[str, ...]:
    """The splits that a task has, named as files are: ``train``, ``dev``, for mnli ``dev_matched`` and so on.

    Raises:
        OsrmError: If the source has no such task.
    """
    known = list_tasks(data)
    if name not in known:
        nearest = sorted(known, key=lambda each: -difflib.SequenceMatcher(None, name.lower(), each.lower()).ratio())
        raise OsrmError(f"unknown task '{name}' in {data}", f"there are: {', '.join(nearest)}")
    if str(data) == "hub":
        return list_glue_splits(name)
    return tuple(_find_split_files((MINI_FOLDER if str(data) == "mini" else Path(data)) / name))


def load_split(name: str, data: str | Path, split: str, limit: int | None = None) -> TaskSplit:
    """Read one split.

    Args:
        name: The task.
        data: ``hub``, ``mini``, or a folder with ``<task>/<split>.*``.
        split: ``train``, ``dev``, ``test``; ``dev`` is the matched one for a task that has two.
        limit: Read no more than the first so many examples.

    Raises:
        OsrmError: If there is no such task or split, or if a row cannot be used.
    """
    actual = _resolve_split(name, data, split)
    source = {"hub": _read_hub, "mini": _read_mini}.get(str(data))
    table = source(name, actual, limit) if source else _read_folder(Path(data, name), actual, limit)
    return TaskSplit(table.task, split, _make_examples(table, split), table.source)


def load_texts(task: Task, data: str | Path, split: str) -> TaskSplit:
    """Read the texts of one split; labels are not looked at and need not be there.

    Args:
        task: The task, with the columns to read.
        data: As for ``load``.
        split: As for ``load``.

    Raises:
        OsrmError: If there is no such task or split, or if a row's texts cannot be used.
    """
    actual = _resolve_split(task.name, data, split)
    if source := {"hub": _read_hub, "mini": _read_mini}.get(str(data)):
        table = source(task.name, actual, None)
        rows, path = table.rows, table.source
    else:
        path = str(_find_split_files(Path(data, task.name))[actual])
        rows = read_rows(Path(path))
    return TaskSplit(task, split, tuple(Example(texts, None) for texts in parse_texts(rows, task.columns, path)), path)


def _resolve_split(name: str, data: str | Path, split: str) -> str:
    """The split that is meant: of a task that has two, the matched one."""
    held = list_splits(name, data)
    actual = next((each for each in (split, f"{split}_matched") if each in held), None)
    if actual is None:
        raise OsrmError(f"task '{name}' in {data} has no split '{split}'", f"there are: {', '.join(held)}")
    return actual


def draw_examples(data: TaskSplit, k: int, seed: int) -> TaskSplit:
    """Draw ``k`` examples, or all when there are fewer; a smaller draw is the beginning of a larger one.

    Each example's place comes from a hash of seed, task and index, which no version of Python or numpy can change.
    """
    prefix = f"{seed}\0{data.task.name}\0{data.split}\0"
    order = sorted(range(len(data.examples)), key=lambda i: hashlib.sha256(f"{prefix}{i}".encode()).digest())
    return TaskSplit(data.task, data.split, tuple(data.examples[i] for i in order[:k]), data.source)


def _read_hub(name: str, split: str, limit: int | None) -> _Table:
    source = f"{GLUE_HUB_ID}/{name}/{split}"
    return _Table(Task(name, **GLUE[name]), "label", True, source, _number_rows(load_glue_rows(name, split, limit)))


def _read_mini(name: str, split: str, limit: int | None) -> _Table:
    rows = read_rows(_find_split_files(MINI_FOLDER / name)[split], limit)
    return _Table(Task(name, **MINI[name]), "label", True, f"mini/{name}/{split}", rows)


def _number_rows(rows: Sequence[Mapping[str, Any]]) -> list[SourceRow]:
    return [SourceRow(number, dict(row)) for number, row in enumerate(rows, 1)]


def _find_split_files(folder: Path) -> dict[str, Path]:
    return {split: path for split in SPLIT_STEMS if (path := find_split_file(folder, split))}


def _read_folder(folder: Path, split: str, limit: int | None) -> _Table:
    """A task of a folder; only one that has to be inferred reads its training rows for that."""
    files = _find_split_files(folder)
    toml = folder / "task.toml"
    told: TaskFields = {**GLUE.get(folder.name, {}), **read_task_file(toml)}
    if told.keys() >= {"columns", "labels"}:
        rows = read_rows(files[split], limit)
        facts = add_defaults(told, rows)
    else:
        if "train" not in files:
            raise OsrmError(f"{folder} has no train.* to infer the task from", f"say columns and labels in {toml}")
        train = read_rows(files["train"])
        facts = infer_schema(told, train, str(files["train"]))
        rows = train[:limit] if split == "train" else read_rows(files[split], limit)
    if toml.is_file():
        check_metrics(facts, toml)
    column = facts.pop("label_column")
    return _Table(Task(folder.name, **facts), column, bool(told.get("labels")), str(files[split]), rows)


def _make_examples(table: _Table, split: str) -> tuple[Example, ...]:
    task, rows, source = table.task, table.rows, table.source
    labels: Iterable[Label | None]
    if split.startswith("test") and is_unlabelled(rows, table.label_column):
        labels = [None] * len(rows)
    elif task.labels is None:
        labels = parse_scores(rows, table.label_column, source)
    else:
        labels = parse_classes(rows, table.label_column, task.labels, table.codes, source)
    return tuple(map(Example, parse_texts(rows, task.columns, source), labels))
