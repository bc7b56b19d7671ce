"""What was understood of a task's data, for ``osrm collect --dry-run``."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from osrm_cli.tasks.label_sets import label_matrix
from osrm_cli.tasks.parsing import describe_table_value
from osrm_cli.tasks.task import GENERATION, Label, Task, TaskSplit


def describe_task_split(data: TaskSplit) -> dict[str, Any]:
    """Columns, kind of label, labels with counts, first row and a ``task.toml`` that says the same."""
    if data.task.is_text:
        return _describe_text_task(data)
    task, first = data.task, data.examples[0]
    counts = Counter(example.label for example in data.examples if example.label is not None)
    labels: dict[str, Any]
    if task.is_multi_label:
        matrix = label_matrix([*counts.elements()], task.num_labels)
        labels = {str(label): int(count) for label, count in zip(task.labels or (), matrix.sum(0), strict=True)}
    elif task.labels is None:
        labels = {"lowest": min(counts, default=None), "highest": max(counts, default=None)}
    else:
        labels = {str(label): counts[index] for index, label in enumerate(task.labels)}
    column = data.label_column if isinstance(data.label_column, str) else ", ".join(data.label_column)
    return {
        "source": data.source,
        "examples": len(data.examples),
        "columns": list(task.columns),
        "label_column": column,
        "kind": "regression" if task.regression else task.kind,
        "labels": labels,
        "first": {**dict(zip(task.columns, first.texts, strict=True)), column: _describe_task_label(task, first.label)},
        "task_toml": _write_task_toml(data),
    }


def _describe_task_label(task: Task, label: Label | None) -> Any:
    if task.labels is None or label is None:
        return label
    if task.is_multi_label:
        return [name for index, name in enumerate(task.labels) if int(label) >> index & 1]
    return task.labels[int(label)]


def _describe_text_task(data: TaskSplit) -> dict[str, Any]:
    """Columns, length of the completions, and first row of a task that is answered with text."""
    lengths = [len(example.reference) for example in data.text_examples]
    return {
        "source": data.source,
        "examples": len(data.examples),
        "columns": list(data.task.columns),
        "kind": data.task.kind,
        "completion_characters": {"median": statistics.median(lengths), "longest": max(lengths)},
        "first": dict(zip(data.task.columns, data.examples[0].texts, strict=True)),
        "task_toml": _write_task_toml(data),
    }


def format_task_description(described: Mapping[str, Any]) -> str:
    """The lines that a person reads."""
    first = ", ".join(f"{name} = {describe_table_value(value)}" for name, value in described["first"].items())
    if described["kind"] == GENERATION:
        lengths = ", ".join(f"{name} {count:g}" for name, count in described["completion_characters"].items())
        about = f"characters of a completion: {lengths}"
    else:
        labels = ", ".join(f"{name} {count}" for name, count in described["labels"].items())
        about = f"labels in {described['label_column']}: {labels}"
    lines = [
        f"{described['examples']} examples of {described['source']}, {described['kind']}",
        about,
        f"first row: {first}",
        "the same as a task.toml:",
        *(f"  {line}" for line in described["task_toml"].splitlines()),
    ]
    return "\n".join(f"  {line}" for line in lines)


def _write_task_toml(data: TaskSplit) -> str:
    task = data.task
    if task.is_text:
        fields: dict[str, Any] = {
            "kind": GENERATION,
            "metrics": list(task.metrics),
            "max_length": task.max_length,
            "max_new_tokens": task.max_new_tokens,
            "stop": list(task.stop) or None,
        }
        return _format_task_toml(fields)
    fields = {
        "kind": task.kind if task.is_multi_label else None,
        "columns": list(task.columns),
        "label_column": data.label_column,
        "labels": "float" if task.labels is None else list(task.labels),
        "metrics": list(task.metrics),
        "max_length": task.max_length,
    }
    return _format_task_toml(fields)


def _format_task_toml(fields: Mapping[str, Any]) -> str:
    # A JSON string or array of them is TOML as well, but for a character that only JSON leaves bare.
    written = {key: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") for key, value in fields.items()}
    return "".join(f"{key} = {text}\n" for key, text in written.items() if fields[key] is not None)
