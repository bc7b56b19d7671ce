"""What the training rows of a task tell about it: text columns, label column, kind of label."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.tasks import label_sets
from osrm_cli.tasks.file_encoding import is_encodable
from osrm_cli.tasks.parsing import describe_table_value, is_no_label, normalize_label, parse_number
from osrm_cli.tasks.table import Table
from osrm_cli.tasks.task import CLASSIFICATION, MULTI_LABEL

LABEL_COLUMNS = ("label", "labels", "gold_label", "score", "target", "class")  # the first that there is
# Names that may as well be of something else: one of them must stand alone.
OTHER_LABEL_COLUMNS = (
    *("category", "sentiment", "polarity", "emotion", "intent", "topic", "rating", "stars", "stance"),
    *("gold", "annotation", "verdict", "is_duplicate", "label_id", "y"),
)
PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("question", "sentence")),
    *(("question", "answer"), ("text1", "text2"), ("text_a", "text_b"), ("query", "passage")),
)
TEXT_COLUMNS = ("text", "sentence", "review", "content", "message", "comment", "comment_text", "tweet", "document")
ID_COLUMNS = ("idx", "id", "index", "guid", "uuid", "uid")
_ID = re.compile(r".*(_id|_idx|[a-z]I[Dd])|Unnamed: \d+")
MAX_CLASSES = 200  # more than this is a score, an identifier or a text in the wrong column

Fields = dict[str, Any]


def infer_task_schema(declared: Fields, table: Table) -> Fields:
    """Complete ``declared`` from training rows: text columns, label column, kind of label, metrics.

    Notes about what was left out are added to the table's.

    Raises:
        OsrmError: If something cannot be told without guessing.
    """
    label = declared.get("label_column")
    if isinstance(label, tuple):
        label = tuple(table.get_column(name) for name in label)
    else:
        label = find_label_column(table, label) or _find_label_flag_columns(table, label)
    columns = declared.get("columns") or infer_text_columns(table, label)
    labels = declared["labels"] if "labels" in declared else infer_task_labels(table, label)
    return add_task_defaults({**declared, "label_column": label, "columns": columns, "labels": labels}, table)


def add_task_defaults(declared: Fields, table: Table) -> Fields:
    """Fill in kind, metrics and label column where columns and labels are known already."""
    label = declared.get("label_column") or find_label_column(table) or "label"
    found = table.find_column(label) if isinstance(label, str) else None
    is_multi_label = isinstance(label, tuple) or (found is not None and label_sets.holds_label_lists(table, found))
    kind = declared.get("kind") or (MULTI_LABEL if is_multi_label else CLASSIFICATION)
    metrics: tuple[str, ...] = ("pearson", "spearman") if declared["labels"] is None else ("accuracy",)
    if kind == MULTI_LABEL:
        metrics = ("micro_f1",)
        if declared["labels"] is None:
            raise OsrmError(
                f'{table.source}: kind "multi-label" with labels "float"', "say labels = [...], or leave out one"
            )
    return {"metrics": metrics, **declared, "label_column": label, "kind": kind}


def _find_label_flag_columns(table: Table, declared: str | None) -> tuple[str, ...]:
    """A column of 0 and 1 for each class, where no name says which column is the label.

    Raises:
        OsrmError: If there are none.
    """
    flags = [
        name for name in label_sets.find_binary_columns(table) if not _is_id_column(name) and parse_number(name) is None
    ]
    if declared is not None or not 2 <= len(flags) <= label_sets.MAX_CLASSES:
        raise _explain_missing_label(table, declared)
    table.warnings.append(
        f"{table.source}: {', '.join(flags)} hold 0 and 1 and are taken for classes, of which any number holds in a "
        "row; for one of them alone, say label_column in a task.toml"
    )
    return tuple(flags)


def find_label_column(table: Table, declared: str | None = None) -> str | None:
    """The column that holds the label, by its name."""
    if declared is not None:
        return table.find_column(declared)
    for name in LABEL_COLUMNS:
        if found := table.find_column(name):
            return found
    others = [found for name in OTHER_LABEL_COLUMNS if (found := table.find_column(name))]
    return others[0] if len(others) == 1 else None


def _explain_missing_label(table: Table, declared: str | None) -> OsrmError:
    names = list(table.columns)
    wanted = f"'{declared}'" if declared else f"one of {', '.join(LABEL_COLUMNS)}"
    message = f"{table.source} has no label column, expected {wanted}, found: {', '.join(names)}"
    few = [name for name in names if _is_label_like(table.columns[name])]
    if any(parse_number(name) is not None or len(name.split()) > 3 for name in names):
        return OsrmError(message, "write the columns' names into the first line, such as text and label")
    if len(few) != 1:
        return OsrmError(message, 'say label_column = "NAME" in a task.toml beside it')
    texts = [name for name in names if name != few[0] and _is_text_column(table.columns[name])]
    said = f'label_column = "{few[0]}"' + (
        f" and columns = {_quote_column_names(texts)}" if 1 <= len(texts) <= 2 else ""
    )
    return OsrmError(message, f"say {said} in a task.toml beside it")


def _is_label_like(values: Sequence[Any]) -> bool:
    """Whether a column holds few different values, most of them more than once."""
    if any(value.__hash__ is None for value in values):
        return False
    counts = Counter(values)
    return 2 <= len(counts) <= MAX_CLASSES and len(values) >= 4 * len(counts)


def _quote_column_names(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def infer_text_columns(table: Table, label: str | tuple[str, ...]) -> tuple[str, ...]:
    """The one or two columns that hold text.

    Args:
        table: The rows.
        label: The column that holds the label, or those with a class each.

    Raises:
        OsrmError: If there are none, or more of which no name tells.
    """
    names = []
    labels = (label,) if isinstance(label, str) else label
    for name, values in table.columns.items():
        if name in labels or _is_id_column(name) or not _is_text_column(values):
            continue
        if isinstance(label, str) and _repeats_label(name, values, table.columns[label]):
            table.warnings.append(f"{table.source}: column '{name}' repeats the label and was left out")
        else:
            names.append(name)
    if not names:
        names = [found for name in TEXT_COLUMNS if (found := table.find_column(name)) and found not in labels][:1]
    if len(names) > 2 and (known := _pick_known_text_columns(names)):
        rest = ", ".join(name for name in names if name not in known)
        table.warnings.append(
            f"{table.source}: text columns left out: {rest}; to read them, say columns in a task.toml"
        )
        names = known
    if not 1 <= len(names) <= 2:
        example = f" such as {_quote_column_names(names[:2])}" if names else ""
        raise OsrmError(
            f"{table.source} has {len(names)} text columns, expected one or two: {', '.join(names or table.columns)}",
            f'say columns = ["NAME"] or ["FIRST", "SECOND"]{example} in a task.toml beside it',
        )
    return tuple(names)


def _is_id_column(name: str) -> bool:
    return name.casefold() in ID_COLUMNS or _ID.fullmatch(name) is not None


def _is_text_column(values: Sequence[Any]) -> bool:
    """Whether a column holds words in most of its rows, and nothing that cannot be a text."""
    if not all(value is None or isinstance(value, (str, int, float)) for value in values):
        return False
    filled = [value for value in values if value not in (None, "")]
    words = sum(isinstance(value, str) and parse_number(value) is None for value in filled)
    return 2 * words >= len(filled) > 0


def _repeats_label(name: str, values: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Whether each label has one value of its own: the name of a class beside its code."""
    try:
        pairs = set(zip(labels, values, strict=True))
    except TypeError:  # a list of labels
        return False
    one_to_one = len(pairs) == len({label for label, _ in pairs}) == len({value for _, value in pairs})
    return one_to_one and len(pairs) > 1 and ("label" in name.casefold() or len(values) >= 4 * len(pairs))


def _pick_known_text_columns(names: Sequence[str]) -> list[str]:
    """The columns among several whose names say that they are the text."""
    folded = {name.casefold(): name for name in names}
    for pair in PAIRS:
        if set(pair) <= set(folded):
            return [folded[name] for name in pair]
    single = [folded[name] for name in TEXT_COLUMNS if name in folded]
    return single if len(single) == 1 else []


def infer_task_labels(table: Table, column: str | tuple[str, ...]) -> tuple[str | int, ...] | None:
    """The classes in order, or ``None`` for regression: a label that is no whole number makes it that.

    Args:
        table: The rows.
        column: Their label; several columns are a class each.

    Raises:
        OsrmError: If the labels are of several kinds, or too many or too few to be classes.
    """
    if isinstance(column, tuple):
        return column
    if label_sets.holds_label_lists(table, column):
        return label_sets.infer_label_classes(table, column)
    values = table.columns[column]
    first: int | None = None
    distinct: dict[Any, bool] = {}  # whether it is a number
    fractions = False
    for row, value in enumerate(values):
        if is_no_label(value) and normalize_label(value) != -1:
            continue
        if not isinstance(value, (str, int, float)) or not is_encodable(str(value)):
            raise OsrmError(
                f"{table.locate(row)}: the label is {describe_table_value(value)}, expected a class or a number"
            )
        number = parse_number(value)
        if number is not None and not math.isfinite(number):
            raise OsrmError(f"{table.locate(row)}: the label is {value}, expected a finite number")
        if first is None:
            first = row
        if (number is None) != (parse_number(values[first]) is None):
            raise OsrmError(
                f"{table.locate(row)}: the label is {value!r}, but {_name_table_row(table, first)} has "
                f"{values[first]!r}",
                "make all words or all numbers, or say labels = [...] in a task.toml beside it",
            )
        fractions = fractions or isinstance(number, float)
        distinct[normalize_label(value)] = number is not None
    if fractions and (len(distinct) > MAX_CLASSES or any(isinstance(value, float) for value in distinct)):
        return None
    classes = tuple(sorted(distinct))
    if set(classes) == {-1, 0, 1}:
        raise OsrmError(
            f"{table.source}: the labels are -1, 0 and 1, of which -1 may be a class or stand for no label",
            "say labels = [-1, 0, 1] or labels = [0, 1] in a task.toml beside it",
        )
    if len(classes) > 3 and classes == tuple(range(-1, len(classes) - 1)):
        classes = classes[1:]
        table.warnings.append(
            f"{table.source}: label -1 is taken for no label; to make it a class, "
            f"say labels = {[-1, *classes]} in a task.toml"
        )
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise OsrmError(
            f"{table.source} has {len(classes)} different labels in column '{column}', expected 2 to {MAX_CLASSES}",
            'say label_column = "NAME", or labels = "float" for regression, in a task.toml beside it',
        )
    if len(classes) == len(values) > 20:
        raise OsrmError(
            f"{table.source}: no two rows have the same label in column '{column}'",
            'say label_column = "NAME", or labels = [...], in a task.toml beside it',
        )
    if fractions:
        table.warnings.append(
            f'{table.source}: the labels are whole numbers and taken for classes; say labels = "float" in a task.toml '
            "if they are scores"
        )
    return classes


def _name_table_row(table: Table, row: int) -> str:
    return f"{'line' if table.by_line else 'row'} {table.numbers[row]}"
