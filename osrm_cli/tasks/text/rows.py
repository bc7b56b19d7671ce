"""Rows of tasks that are answered with text, by the columns that TRL reads.

``prompt`` and ``completion`` (two strings, or two lists of messages), ``messages`` (a chat), or ``text`` alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.file_encoding import is_encodable
from osrm_cli.tasks.parsing import describe_table_value
from osrm_cli.tasks.schema import ID_COLUMNS
from osrm_cli.tasks.table import Table
from osrm_cli.tasks.task import GENERATION, Messages, Task, TaskSplit, TextExample

PROMPT, COMPLETION, MESSAGES, TEXT, CHOICES = "prompt", "completion", "messages", "text", "choices"
CLASS_COLUMN = "label"
LAYOUTS = ((PROMPT, COMPLETION), (MESSAGES,), (TEXT,))
DEFAULT_METRICS = ("rouge_l",)


def find_text_columns(table: Table) -> tuple[str, ...] | None:
    """The columns of the first layout that a table has, whatever else it holds; ``None`` if it has none."""
    return next((columns for columns in LAYOUTS if all(name in table.columns for name in columns)), None)


def is_text_table(table: Table) -> bool:
    """Whether rows of which nothing else is known are answered with text.

    ``label`` beside a layout makes a classifier. Prompts and chats may have any other columns; ``text`` counts alone.
    """
    columns = find_text_columns(table)
    if columns == (TEXT,):
        return all(name == TEXT or name.casefold() in ID_COLUMNS for name in table.columns)
    return columns is not None and table.find_column(CLASS_COLUMN) is None


def complete_text_task(name: str, declared: Mapping[str, Any], table: Table, answered: bool = True) -> Task:
    """The task of a table's rows, with what ``task.toml`` says.

    Args:
        name: The task's name.
        declared: What ``task.toml`` says.
        table: The rows.
        answered: Whether completions are read, if there are prompts.

    Raises:
        OsrmError: If the table has none of the layouts of columns.
    """
    columns = (PROMPT,) if not answered and PROMPT in table.columns else find_text_columns(table)
    if columns is None:
        raise OsrmError(
            f"{table.source} has the columns {', '.join(table.columns)}, expected prompt and completion, messages, "
            "or text",
            'rename the columns, or leave out kind = "generation" in task.toml',
        )
    fields = {key: declared[key] for key in ("metrics", "max_length", "max_new_tokens", "stop") if key in declared}
    metrics = ("accuracy",) if CHOICES in table.columns else DEFAULT_METRICS
    return Task(name, columns, None, **{"metrics": metrics, **fields}, kind=GENERATION)


def make_text_split(table: Table, task: Task, split: str, answered: bool = True) -> TaskSplit:
    """Examples of rows.

    Args:
        table: The rows.
        task: Its columns are read.
        split: The split that was asked for.
        answered: Whether completions are read, if there are prompts.

    Raises:
        OsrmError: Naming file and row of the first that cannot be used.
    """
    missing = [column for column in task.columns if column not in table.columns]
    if missing:
        raise OsrmError(f"{table.source} has no column '{missing[0]}', found: {', '.join(table.columns)}")
    examples = tuple(_parse_text_task_row(table, row, task.columns, answered) for row in range(len(table)))
    return TaskSplit(task, split, examples, table.source, task.columns[-1], tuple(table.warnings))


def _parse_text_task_row(table: Table, row: int, columns: Sequence[str], answered: bool) -> TextExample:
    example = _read_text_task_row(table, row, columns, answered)
    if example.choices and example.reference not in example.choices:
        raise OsrmError(f"{example.place}: the completion is none of the choices", "correct the row")
    return example


def _read_text_task_row(table: Table, row: int, columns: Sequence[str], answered: bool) -> TextExample:
    place = table.locate(row)
    values = [_parse_text_task_value(place, column, table.columns[column][row]) for column in columns]
    texts = tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
    choices = _parse_answer_choices(place, table.columns[CHOICES][row]) if CHOICES in table.columns else ()
    if columns == (MESSAGES,):
        (chat,) = values
        if not answered:
            return TextExample(texts, None, chat[:-1] if chat[-1]["role"] == "assistant" else chat, "", place)
        _check_chat_end(place, MESSAGES, chat)
        return TextExample(texts, None, chat[:-1], chat[-1:], place, choices, all_turns=True)
    if columns == (PROMPT,):
        return TextExample(texts, None, values[0], "", place)
    if columns == (TEXT,):
        return TextExample(texts, None, "", values[0], place, choices)
    prompt, completion = values
    if isinstance(prompt, str) != isinstance(completion, str):
        raise OsrmError(f"{place}: prompt and completion are a string and a list of messages, expected two of a kind")
    if not isinstance(completion, str):
        _check_chat_end(place, COMPLETION, completion)
    return TextExample(texts, None, prompt, completion, place, choices)


def _parse_text_task_value(place: str, column: str, value: Any) -> Any:
    """A text or a chat."""
    if isinstance(value, list):
        return _parse_chat_messages(place, column, value)
    return _parse_task_text(place, f"column '{column}'", value)


def _parse_task_text(place: str, what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if isinstance(value, str) else describe_table_value(value)
        raise OsrmError(f"{place}: {what} holds {found}, expected text", "complete the row or remove it")
    if not is_encodable(value):
        raise OsrmError(f"{place}: {what} holds half a surrogate pair, expected text")
    return value


def _parse_chat_messages(place: str, column: str, value: list[Any]) -> Messages:
    if not value:
        raise OsrmError(f"{place}: column '{column}' holds no message, expected one or more")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise OsrmError(
                f"{place}: message {number} of '{column}' is {describe_table_value(message)}",
                'expected {"role": ..., "content": ...}',
            )
        _parse_task_text(place, f"message {number} of '{column}'", message.get("content"))
    return tuple(value)


def _check_chat_end(place: str, column: str, chat: Messages) -> None:
    if chat[-1]["role"] != "assistant":
        raise OsrmError(
            f"{place}: '{column}' ends with a message of the role {chat[-1]['role']!r}, expected 'assistant'",
            "end the chat with the answer",
        )


def _parse_answer_choices(place: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2 or len(set(map(str, value))) < len(value):
        raise OsrmError(
            f"{place}: choices is {describe_table_value(value)}, expected a list of two or more different texts"
        )
    return tuple(_parse_task_text(place, "choices", choice) for choice in value)
