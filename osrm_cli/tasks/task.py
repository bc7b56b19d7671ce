"""A task, its examples and its splits: what is read from anywhere and used everywhere."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

from osrm_cli.errors import OsrmError

Label = int | float
CLASSIFICATION, MULTI_LABEL, GENERATION = "classification", "multi-label", "generation"
_TEXT_FIELDS = ("max_new_tokens", "stop")
TASK_NAME = re.compile(r"\w[\w.-]*")  # so that files and folders can be named after a task


def check_task_name(name: str) -> None:
    """Check a task's name.

    Raises:
        OsrmError: If not.
    """
    if not TASK_NAME.fullmatch(name):
        raise OsrmError(
            f"{name!r} cannot be the name of a task", "rename its folder: letters, digits, '_', '-' and '.' only"
        )


@dataclass(frozen=True)
class Task:
    """What a model has to predict, and how it is judged.

    Attributes:
        name: Such as ``sst2``.
        columns: One text column, or two for a pair; of a task that is answered with text, ``prompt`` and
            ``completion``, ``messages``, or ``text``.
        labels: Classes in the order of the model's outputs; ``None`` for regression and for text.
        metrics: Names of ``metrics.METRICS`` or of ``text.metrics.TEXT_METRICS``; their mean is the primary score.
        max_length: Tokens to keep, or ``None`` for the caller's default.
        kind: ``classification``, which includes regression; ``multi-label``: of the classes, any number holds; or
            ``generation``: the answer is text.
        max_new_tokens: Longest answer in tokens, or ``None`` for the longest reference's.
        stop: Strings at which an answer ends; they are not part of it.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str | int, ...] | None
    metrics: tuple[str, ...]
    max_length: int | None = None
    kind: str = CLASSIFICATION
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the answer is text."""
        return self.kind == GENERATION

    @property
    def is_multi_label(self) -> bool:
        """Whether a row may be of several classes, or of none."""
        return self.kind == MULTI_LABEL

    @cached_property
    def regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return self.labels is None and not self.is_text

    @cached_property
    def num_labels(self) -> int:
        """Number of the model's outputs."""
        return 1 if self.regression or self.labels is None else len(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them; the usual kind, and what only text has, go without saying."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.kind == CLASSIFICATION:
            del fields["kind"]
        return fields if self.is_text else {key: fields[key] for key in fields if key not in _TEXT_FIELDS}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in facts.items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Example:
    """One text or pair of texts.

    Attributes:
        texts: One for each of the task's columns.
        label: Index of the class, the score, or the set of classes as bits (``label_sets``); ``None`` where the test
            split has none.
    """

    texts: tuple[str, ...]
    label: Label | None


Messages = tuple[Mapping[str, Any], ...]  # a chat: each with ``role`` and ``content``


@dataclass(frozen=True, slots=True)
class TextExample(Example):
    """A prompt and the text that answers it.

    Attributes:
        texts: One for each of the task's columns; chats as JSON.
        label: None: the reference is text.
        prompt: What the model reads; empty where the whole text counts.
        completion: The reference.
        place: Where the row stands, such as ``train.jsonl:7``.
        choices: Answers of which one is right, if it is a choice.
        all_turns: Whether the assistant's turns in the prompt count as well.
    """

    prompt: str | Messages
    completion: str | Messages
    place: str
    choices: tuple[str, ...] = ()
    all_turns: bool = False

    @property
    def reference(self) -> str:
        """The right answer as text."""
        return self.completion if isinstance(self.completion, str) else str(self.completion[-1]["content"])

    def with_answer(self, text: str) -> Self:
        """The same prompt with another answer, which alone counts."""
        if isinstance(self.completion, str):
            return replace(self, completion=text)
        last = {**self.completion[-1], "content": text}
        return replace(self, completion=(*self.completion[:-1], last), all_turns=False)


@dataclass(frozen=True)
class TaskSplit:
    """One split of one task.

    Attributes:
        task: The task.
        split: The split that was asked for.
        examples: Its examples, in the order of the source.
        source: The file, or its name on the hub or among the generated tasks.
        label_column: The column that the labels were read from, or those with a class each.
        warnings: What the user should know about how it was read.
    """

    task: Task
    split: str
    examples: tuple[Example, ...]
    source: str
    label_column: str | tuple[str, ...] = "label"
    warnings: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Digest of texts and labels: the same for the same examples, whatever kind of file held them."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(json.dumps([*example.texts, example.label]).encode() + b"\n")
        return digest.hexdigest()

    @property
    def text_examples(self) -> list[TextExample]:
        """The examples of a task that is answered with text."""
        return [example for example in self.examples if isinstance(example, TextExample)]

    @property
    def labels(self) -> list[Label]:
        """The labels, for scoring.

        Raises:
            OsrmError: If an example has none.
        """
        found = [example.label for example in self.examples if example.label is not None]
        if len(found) < len(self.examples):
            raise OsrmError(f"{self.source} has no labels to score against", "use a split that has: --split dev")
        return found
