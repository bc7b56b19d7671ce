"""Tasks and their examples, from the hub, the generated tasks of the package, or a folder of files.

A source is ``hub``, ``mini``, ``mini-text`` or a folder. ``FOLDER?split-dev=0.1`` is a folder without dev splits, of
whose train splits a tenth is dev: so ``--split-dev`` is passed on, and recorded in every artifact.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.draws import are_sorted_by_label, draw_order_by_hash
from osrm_cli.tasks.glue import GLUE, GLUE_HUB_ID, list_glue_splits, load_glue_columns
from osrm_cli.tasks.label_sets import parse_label_sets
from osrm_cli.tasks.mini import MINI, MINI_FOLDER
from osrm_cli.tasks.mini_text import MINI_TEXT, MINI_TEXT_FOLDER
from osrm_cli.tasks.parsing import is_unlabelled, parse_classes, parse_scores, parse_texts
from osrm_cli.tasks.readers import FORMATS, find_split_files, read_table
from osrm_cli.tasks.schema import add_task_defaults, infer_task_schema
from osrm_cli.tasks.table import Table
from osrm_cli.tasks.task import GENERATION, MULTI_LABEL, Example, Label, Task, TaskSplit, check_task_name
from osrm_cli.tasks.text.rows import complete_text_task, is_text_table, make_text_split

_WITH_SHARE = re.compile(r"(.*)\?split-dev=(0?\.\d+|\d(?:\.\d+)?e-\d+)", re.DOTALL)


def task_source_with_dev_share(data: str | Path | None, share: float | None) -> str | None:
    """A source of whose train splits a share is dev.

    Args:
        data: The value of ``--data``; ``None`` for the recorded source, see ``choose_task_source``.
        share: The value of ``--split-dev``.

    Raises:
        OsrmError: If the share is none or all, or the source names another.
    """
    if share is None:
        return None if data is None else str(data)
    folder, own = split_task_source(data or "")
    if not 0 < share < 1:
        raise OsrmError(f"--split-dev is {share:g}, expected a number between 0 and 1")
    if own not in (None, share):
        raise OsrmError(f"--data says split-dev={own:g}, --split-dev {share:g}", "give one of the two")
    return f"{folder}?split-dev={share!r}"


def split_task_source(data: str | Path) -> tuple[str, float | None]:
    """A source without the share of train that is dev, and that share; ``None`` where it names none."""
    found = _WITH_SHARE.fullmatch(str(data))
    return (found[1], share) if found and (share := float(found[2])) else (str(data), None)


def choose_task_source(name: str, recorded: str | None, data: str | None, origin: Path | str) -> str | None:
    """The source that a command reads: the user's, else the recorded one; the recorded share of train stays dev.

    Args:
        name: The task.
        recorded: The source that an artifact records, if it does.
        data: The value of ``--data``, perhaps ``task_source_with_dev_share``.
        origin: The artifact, for the error.

    Raises:
        OsrmError: If the shares differ.
    """
    if data is None:
        return recorded
    (folder, share), (own_folder, own_share) = split_task_source(data), split_task_source(recorded or "")
    if not folder and not own_folder:
        raise OsrmError(f"{origin} does not record its data, of which --split-dev takes a share", "give --data")
    if None not in (share, own_share) and share != own_share and folder in ("", own_folder):
        raise OsrmError(
            f"--split-dev is {share:g}, but {origin} was made with {own_share:g} of train as dev",
            "leave out --split-dev: the recorded share is taken",
        )
    folder = folder or own_folder
    if share is None and own_share is not None and not _has_dev_split(name, folder):
        share = own_share
    return task_source_with_dev_share(folder, share)


def list_tasks(data: str | Path) -> list[str]:
    """The tasks of a source.

    Raises:
        OsrmError: If it is a folder that is missing or holds none.
    """
    data, _ = split_task_source(data)
    if str(data) == "hub":
        return list(GLUE)
    if str(data) == "mini":
        return list(MINI)
    if str(data) == "mini-text":
        return list(MINI_TEXT)
    folder = Path(data)
    if not folder.is_dir():
        raise OsrmError(
            f"no data folder {folder}",
            "--data takes 'hub', 'mini', 'mini-text', or a folder that holds TASK/train.jsonl",
        )
    found = sorted(each.name for each in folder.iterdir() if each.is_dir() and find_split_files(each))
    if not found:
        raise OsrmError(
            f"{folder} holds no tasks",
            f"put each task's files into a folder of its own: TASK/train.jsonl (or {', '.join(list(FORMATS)[1:])})",
        )
    return found


def list_splits(name: str, data: str | Path) -> tuple[str, ...]:
    """The splits that a task has, named as files are: ``train``, ``dev``, for mnli ``dev_matched`` and so on.

    Raises:
        OsrmError: If the source has no such task.
    """
    known = list_tasks(data)
    if name not in known:
        nearest = sorted(known, key=lambda each: -difflib.SequenceMatcher(None, name.lower(), each.lower()).ratio())
        raise OsrmError(f"unknown task '{name}' in {split_task_source(data)[0]}", f"there are: {', '.join(nearest)}")
    if str(data) == "hub":
        return list_glue_splits(name)
    _, files, declared = _open_task_folder(name, data)
    if "split_dev" in declared:
        return tuple(dict.fromkeys(("train", "dev", *files)))
    return tuple(files)


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
    actual = _resolve_task_split(name, data, split)
    if str(data) in ("hub", "mini"):
        table = _read_known_task(name, str(data), actual, limit)
        return _make_task_split(table, Task(name, **(GLUE | MINI)[name]), "label", True, split, limit)
    folder, files, declared = _open_task_folder(name, data)
    fields = {**GLUE.get(name, {}), **declared}
    if _is_text_task(name, declared, files):
        return _load_text_split(name, folder, declared, files, actual, split, limit)
    codes, share = bool(fields.get("labels")), fields.pop("split_dev", None)
    if fields.keys() >= {"columns", "labels"}:
        table = _read_task_rows(files, actual, share, name, limit)
        fields = add_task_defaults(fields, table)
    elif "train" in files:
        train = read_table(files["train"])
        fields = infer_task_schema(fields, train)
        table = _read_task_rows({**files, "train": train}, actual, share, name, limit)
        table.warnings += [warning for warning in train.warnings if warning not in table.warnings]
    else:
        raise OsrmError(
            f"{folder} has no train.* to infer the task from", f"say columns and labels in {folder / 'task.toml'}"
        )
    if (toml := folder / "task.toml").is_file():
        from osrm_cli.tasks.task_file import check_task_metrics

        check_task_metrics(fields, toml)
    column = fields.pop("label_column")
    return _make_task_split(table, Task(name, **fields), column, codes, split, limit)


def load_prompts(name: str, data: str | Path, split: str, answered: bool = False) -> TaskSplit:
    """Read a task that is answered with text.

    Args:
        name: The task.
        data: As for ``load_split``.
        split: As for ``load_split``.
        answered: Read the completions too; otherwise those beside prompts are not looked at and need not be there.

    Raises:
        OsrmError: If there is no such task or split, or if a row cannot be used.
    """
    actual = _resolve_task_split(name, data, split)
    if str(data) in ("hub", "mini"):
        raise OsrmError(f"task '{name}' in {data} is not answered with text", "give its data with --data")
    folder, files, declared = _open_task_folder(name, data)
    return _load_text_split(name, folder, declared, files, actual, split, None, answered)


def load_texts(task: Task, data: str | Path, split: str) -> TaskSplit:
    """Read the texts of one split; labels are not looked at and need not be there.

    Args:
        task: The task, with the columns to read.
        data: As for ``load_split``.
        split: As for ``load_split``.

    Raises:
        OsrmError: If there is no such task or split, or if a row's texts cannot be used.
    """
    if task.is_text:  # a completion is no label: it is what the model was trained to write
        return load_split(task.name, data, split)
    actual = _resolve_task_split(task.name, data, split)
    if str(data) in ("hub", "mini"):
        table = _read_known_task(task.name, str(data), actual, None)
    else:
        _, files, declared = _open_task_folder(task.name, data)
        table = _read_task_rows(files, actual, declared.get("split_dev"), task.name, None)
    columns = [table.get_column(column) for column in task.columns]
    examples = tuple(Example(texts, None) for texts in parse_texts(table, columns))
    return TaskSplit(task, split, examples, table.source, warnings=tuple(table.warnings))


def draw_examples(data: TaskSplit, k: int, seed: int) -> TaskSplit:
    """Draw ``k`` examples, or all when there are fewer; a smaller draw is the beginning of a larger one.

    Each example's place comes from a hash of seed, task and index, which no version of Python or numpy can change.
    """
    order = draw_order_by_hash(range(len(data.examples)), seed, data.task.name, data.split)
    return replace(data, examples=tuple(data.examples[i] for i in order[:k]))


def _locate_task_folder(name: str, data: str | Path) -> Path:
    """The folder of a task's files, in the package or among the user's own.

    Raises:
        OsrmError: If the user's folder has a name that no task can have.
    """
    if folder := {"mini": MINI_FOLDER, "mini-text": MINI_TEXT_FOLDER}.get(str(data)):
        return folder / name
    check_task_name(name)
    return Path(data) / name


def _has_dev_split(name: str, data: str) -> bool:
    """Whether a task has a dev split without a share of train."""
    if data in ("hub", "mini", "mini-text"):
        return True
    return any(split.startswith("dev") for split in find_split_files(_locate_task_folder(name, data)))


def _open_task_folder(name: str, data: str | Path) -> tuple[Path, dict[str, Path], dict[str, Any]]:
    """A task's folder, the file of each split, and what is declared: in ``task.toml``, and by the source.

    Raises:
        OsrmError: If ``task.toml`` cannot be read, or the source's share of train that is dev does not go with them.
    """
    source, share = split_task_source(data)
    folder = _locate_task_folder(name, source)
    files = find_split_files(folder)
    declared = _read_declared_task(folder, files)
    if share is None:
        return folder, files, declared
    if _has_dev_split(name, source):
        raise OsrmError(
            f"task '{name}' in {source} has a dev split of its own, --split-dev {share:g} would take another of train",
            "leave out --split-dev",
        )
    if declared.setdefault("split_dev", share) != share:
        raise OsrmError(
            f"--split-dev is {share:g}, {folder / 'task.toml'} says split_dev = {declared['split_dev']:g}",
            "leave out --split-dev, or change the file",
        )
    return folder, files, declared


def _is_text_task(name: str, declared: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
    """Whether a task of a folder is answered with text: ``task.toml`` says so, or the columns of its rows."""
    if "kind" in declared or declared.keys() & {"columns", "labels", "label_column"} or name in GLUE:
        return declared.get("kind") == GENERATION
    return is_text_table(read_table(next(iter(files.values())), 1))


def _load_text_split(
    name: str,
    folder: Path,
    declared: Mapping[str, Any],
    files: Mapping[str, Path],
    actual: str,
    split: str,
    limit: int | None,
    answered: bool = True,
) -> TaskSplit:
    """Read one split of a task that is answered with text."""
    table = _read_task_rows(files, actual, declared.get("split_dev"), name, limit)
    task = complete_text_task(name, declared, table, answered)
    if (toml := folder / "task.toml").is_file():
        from osrm_cli.tasks.task_file import check_task_metrics

        check_task_metrics({"labels": None, "metrics": task.metrics, "kind": GENERATION}, toml)
    return make_text_split(table, task, split, answered)


def _resolve_task_split(name: str, data: str | Path, split: str) -> str:
    """The split that is meant: of a task that has two, the matched one."""
    known = list_splits(name, data)
    actual = next((each for each in (split, f"{split}_matched") if each in known), None)
    if actual is None:
        hint = f"there are: {', '.join(known)}"
        if split == "dev" and str(data) not in ("hub", "mini"):
            hint += "; --split-dev 0.1 takes a tenth of train"
        raise OsrmError(f"task '{name}' in {split_task_source(data)[0]} has no split '{split}'", hint)
    return actual


def _read_known_task(name: str, data: str, split: str, limit: int | None) -> Table:
    """The rows of a task of the hub or of the package."""
    if data == "hub":
        return Table(f"{GLUE_HUB_ID}/{name}/{split}", load_glue_columns(name, split, limit))
    return replace(read_table(find_split_files(MINI_FOLDER / name)[split], limit), source=f"mini/{name}/{split}")


def _read_declared_task(folder: Path, files: dict[str, Path]) -> dict[str, Any]:
    """What ``task.toml`` says; a share of train is dev only where no file is."""
    if not (path := folder / "task.toml").is_file():
        return {}
    from osrm_cli.tasks.task_file import read_task_file

    fields = read_task_file(path)
    if any(split.startswith("dev") for split in files):
        fields.pop("split_dev", None)
    return fields


def _read_task_rows(
    files: Mapping[str, Path | Table], split: str, share: float | None, name: str, limit: int | None
) -> Table:
    """The rows of a task of a folder; dev may be a share of train, drawn by a hash of the task's name.

    Args:
        files: Each split's file, or its rows where they have been read already.
        split: The split that is wanted.
        share: The share of train that is dev, if it is.
        name: The task.
        limit: Read no more than the first so many rows.
    """
    share = share if split in ("train", "dev") else None
    file = files["train" if share else split]
    table = file if isinstance(file, Table) else read_table(file, None if share else limit)
    rows: Sequence[int] = range(len(table))
    if share:
        order = draw_order_by_hash(rows, "split-dev", name)
        first = max(1, round(share * len(table)))
        rows = sorted(order[:first] if split == "dev" else order[first:])
    return table if len(rows[:limit]) == len(table) else table.take(rows[:limit])


def _make_task_split(
    table: Table, task: Task, column: str | tuple[str, ...], codes: bool, split: str, limit: int | None
) -> TaskSplit:
    """Examples of rows; those without text or label are left out, which a warning says."""
    count = len(table)
    texts = parse_texts(table, [table.get_column(name) for name in task.columns])
    labels: list[Label | None]
    names = (column,) if isinstance(column, str) else column
    found = [name for each in names if (name := table.find_column(each))]
    if unlabelled := split.startswith("test") and all(is_unlabelled(table, name) for name in found):
        labels = [None] * count
    elif task.kind == MULTI_LABEL:
        labels = parse_label_sets(table, [table.get_column(name) for name in names], task.labels or (), codes)
    elif task.labels is None:
        labels = parse_scores(table, table.get_column(names[0]))
    else:
        labels = parse_classes(table, table.get_column(names[0]), task.labels, codes)
    warnings = list(table.warnings)
    bare = [row for row, label in enumerate(labels) if label is None and not unlabelled]
    blank = [row for row, row_texts in enumerate(texts) if not any(map(str.strip, row_texts))]
    for rows, what in ((bare, "label"), (blank, "text")):
        if rows:
            first = table.locate(rows[0])
            warnings.append(
                f"{table.source}: left out {len(rows)} of {count} rows without {what}, the first at {first}"
            )
    left_out = {*bare, *blank}
    examples = tuple(
        Example(text, label) for row, (text, label) in enumerate(zip(texts, labels, strict=True)) if row not in left_out
    )
    if not examples:
        raise OsrmError(f"{table.source}: no row has text and label", "see osrm collect --dry-run")
    if (
        limit is not None
        and count >= limit
        and are_sorted_by_label([each.label for each in examples if each.label is not None])
    ):
        warnings.append(
            f"{table.source} is sorted by label: its first {limit} rows do not stand for all; shuffle the file"
        )
    return TaskSplit(task, split, examples, table.source, column, tuple(warnings))
