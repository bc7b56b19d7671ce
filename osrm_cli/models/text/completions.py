"""Tokens of prompts and completions: what the model reads, and which positions count.

As TRL has it: prompt and completion are tokenized as one string, only the completion's tokens have labels, and the end
token is learned at its end. A chat goes through the tokenizer's own template. An encoder-decoder reads the prompt in
its encoder and writes the completion.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import TemplateError

from osrm_cli.errors import OsrmError, first_line
from osrm_cli.models.token_batches import IGNORED, Encoding
from osrm_cli.tasks.task import Messages, TextExample


@dataclass
class CompletionTokenizer:
    """Tokenizes examples for one model.

    Attributes:
        tokenizer: Of transformers.
        encoder_decoder: Whether the prompt is read by an encoder.
        max_length: Tokens of prompt and completion together; of each for an encoder-decoder.
        skip_long: Leave out examples whose completion alone is too long.
        warnings: What the user should know about the examples tokenized so far.
    """

    tokenizer: Any
    encoder_decoder: bool
    max_length: int
    skip_long: bool = False
    warnings: list[str] = field(default_factory=list)

    def encode(
        self, examples: Sequence[TextExample], with_end: bool = True
    ) -> tuple[list[TextExample], list[Encoding]]:
        """The examples that are kept, and ``input_ids``, ``attention_mask`` and ``labels`` of each, not padded.

        A prompt that is too long loses its beginning, never the completion.

        Args:
            examples: Prompts and completions.
            with_end: Whether the end token counts; among choices it does not.

        Raises:
            OsrmError: If a completion alone is too long, the template refuses a chat, or there is no end token.
        """
        if self.tokenizer.eos_token_id is None:
            raise OsrmError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no end token, so that no answer would end",
                "set eos_token in its tokenizer_config.json",
            )
        kept, encodings, merged, long = [], [], 0, []
        for example in examples:
            ids, labels, across = self._encode_chat(example) if example.all_turns else self._encode_pair(example)
            merged += across
            if not with_end:
                labels = self._without_end(labels)
            encoding = self._fit_prompt(ids, labels, example)
            if encoding is None:
                long.append(example.place)
            else:
                kept.append(example)
                encodings.append(encoding)
        if long:
            self.warnings.append(
                f"left out {len(long)} of {len(examples)} examples whose completion exceeds {self.max_length} tokens, "
                f"the first at {long[0]}"
            )
        if merged:
            self.warnings.append(
                f"in {merged} of {len(examples)} examples the tokenizer merges the end of the prompt with the "
                "completion: begin completions with a blank, or end prompts with a line break"
            )
        if not encodings:
            raise OsrmError(
                f"every completion exceeds {self.max_length} tokens",
                "choose a larger length: --max-length where the command has it, else max_length in its task.toml",
            )
        return kept, encodings

    def encode_prompts(self, examples: Sequence[TextExample], max_new_tokens: int) -> list[Encoding]:
        """``input_ids`` and ``attention_mask`` of each prompt, cut from the left to leave room for the answer."""
        room = self.max_length if self.encoder_decoder else max(1, self.max_length - max_new_tokens)
        return [
            _make_language_model_encoding(self._cut_prompt(self._prompt_ids(example), room)) for example in examples
        ]

    def _without_end(self, labels: list[int]) -> list[int]:
        """Labels before the last end token: a template may put a line break after it."""
        end = self.tokenizer.eos_token_id
        if end not in labels:
            return labels
        count = len(labels) - 1 - labels[::-1].index(end)
        return labels[:count] + ([] if self.encoder_decoder else [IGNORED] * (len(labels) - count))

    def _encode_pair(self, example: TextExample) -> tuple[list[int], list[int], bool]:
        prompt = self._prompt_ids(example)
        end = self.tokenizer.eos_token_id
        if isinstance(example.completion, str) and isinstance(example.prompt, str):
            if self.encoder_decoder:
                labels: list[int] = self.tokenizer(text_target=example.completion)["input_ids"]
                return prompt, labels if labels[-1:] == [end] else [*labels, end], False
            ids: list[int] = self.tokenizer(example.prompt + example.completion)["input_ids"]
        else:
            ids = self._apply_template(_chat_for_template(example), example, False)
            if self.encoder_decoder:
                return prompt, ids[_count_shared_tokens(prompt, ids) :], False
        if not ids or (ids[-1] != end and (isinstance(example.completion, str) or end not in ids[len(prompt) :])):
            ids = [*ids, end]
        border = _count_shared_tokens(prompt, ids)
        if border < len(prompt) and not isinstance(example.completion, str):
            raise OsrmError(
                f"{example.place}: the chat template changes earlier messages when the answer is added",
                "give prompt and completion as strings",
            )
        return ids, [IGNORED] * border + ids[border:], border < len(prompt)

    def _encode_chat(self, example: TextExample) -> tuple[list[int], list[int], bool]:
        """A whole chat, in which every turn of the assistant counts."""
        chat: Messages = _chat_for_template(example)
        ids = self._apply_template(chat, example, False)
        if self.encoder_decoder:
            raise OsrmError(f"{example.place}: an encoder-decoder reads prompt and completion, not chats of many turns")
        labels = [IGNORED] * len(ids)
        for turn, message in enumerate(chat):
            if message["role"] == "assistant":
                start = self._apply_template(chat[:turn], example, True) if turn else []
                stop = self._apply_template(chat[: turn + 1], example, False)
                if _count_shared_tokens(start, ids) < len(start) or _count_shared_tokens(stop, ids) < len(stop):
                    raise OsrmError(
                        f"{example.place}: the chat template changes earlier messages as the chat goes on",
                        "make a row of each answer, with prompt and completion",
                    )
                labels[len(start) : len(stop)] = ids[len(start) : len(stop)]
        end = self.tokenizer.eos_token_id
        return (ids, labels, False) if end in ids else ([*ids, end], [*labels, end], False)

    def _prompt_ids(self, example: TextExample) -> list[int]:
        """What the model reads before it answers."""
        if not isinstance(example.prompt, str):
            return self._apply_template(example.prompt, example, True) if example.prompt else self._beginning_tokens()
        if not example.prompt:
            return self._beginning_tokens()
        ids: list[int] = self.tokenizer(example.prompt)["input_ids"]
        # Some tokenizers of causal models end every text with the end token, after which nothing would follow.
        if not self.encoder_decoder and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def _beginning_tokens(self) -> list[int]:
        first = self.tokenizer.bos_token_id
        return [] if first is None or self.tokenizer("a")["input_ids"][:1] != [first] else [first]

    def _apply_template(self, chat: Messages, example: TextExample, asks: bool) -> list[int]:
        if not self.tokenizer.chat_template:
            raise OsrmError(
                f"{example.place} holds a chat, but {self.tokenizer.name_or_path} has no chat template",
                "use an instruction-tuned base model, or give prompt and completion as strings",
            )
        try:
            ids: list[int] = self._render_template(chat, asks)
            system = next((message for message in chat if message["role"] == "system"), None)
            if system and len(chat) > 1 and ids == self._render_template([m for m in chat if m is not system], asks):
                raise OsrmError(
                    f"{example.place}: the chat template drops the system message",
                    "move its text into the first message of the user",
                )
        except TemplateError as error:
            raise OsrmError(f"{example.place}: the chat template refuses the chat: {first_line(error)}") from None
        return ids

    def _render_template(self, chat: Sequence[Any], asks: bool) -> Any:
        rendered = self.tokenizer.apply_chat_template(list(chat), add_generation_prompt=asks, return_dict=True)
        return list(rendered["input_ids"])

    def _fit_prompt(self, ids: list[int], labels: list[int], example: TextExample) -> Encoding | None:
        """Cut a prompt that is too long; ``None`` for an example that is left out."""
        count = len(labels) if self.encoder_decoder else len(ids) - _first_labelled_token(labels)
        if count > self.max_length or (count == self.max_length and not self.encoder_decoder and count < len(ids)):
            if self.skip_long:
                return None
            raise OsrmError(
                f"{example.place}: the completion has {count} tokens, more than fit into --max-length "
                f"{self.max_length}",
                "choose a larger --max-length, or leave such rows out with --skip-long",
            )
        if self.encoder_decoder:
            return _make_language_model_encoding(ids[-self.max_length :], labels)
        kept = self._cut_prompt(ids, self.max_length)
        return _make_language_model_encoding(kept, [IGNORED] * (len(kept) - count) + labels[len(labels) - count :])

    def _cut_prompt(self, ids: list[int], room: int) -> list[int]:
        """The last tokens; the beginning-of-text token stays."""
        if len(ids) <= room:
            return ids
        first = ids[:1] if room > 1 and ids[0] == self.tokenizer.bos_token_id else []
        return [*first, *ids[len(ids) - room + len(first) :]]


def _chat_for_template(example: TextExample) -> Messages:
    """The whole chat of an example."""
    parts = (example.prompt, example.completion)
    return tuple(message for part in parts if not isinstance(part, str) for message in part)


def chat_template_record(tokenizer: Any) -> dict[str, Any]:
    """What the model sees beside the texts, for records: digest of the chat template, and the end token."""
    template = tokenizer.chat_template
    digest = hashlib.sha256(str(template).encode()).hexdigest() if template else None
    return {"chat_template": digest, "eos_token": tokenizer.eos_token}


def check_chat_template(recorded: Mapping[str, Any] | None, tokenizer: Any, task: str) -> None:
    """Refuse a tokenizer with another template or end token than an adapter saw in training.

    Args:
        recorded: The adapter's ``chat_template_record``, if it has one.
        tokenizer: The model's.
        task: The task's name, for the error.

    Raises:
        OsrmError: If they differ.
    """
    actual = chat_template_record(tokenizer)
    for key, value in (recorded or {}).items():
        if actual[key] != value:
            raise OsrmError(
                f"{task}: the adapter was trained with another {key.replace('_', ' ')} than the model's tokenizer has",
                "use the tokenizer that it was trained with",
            )


def encode_generated_answer(prompt: Encoding, answer: Sequence[int], encoder_decoder: bool) -> Encoding:
    """A prompt and the tokens that a model has written after it, all of which count.

    Args:
        prompt: From ``CompletionTokenizer.encode_prompts``.
        answer: Tokens, see ``generate_tokens``.
        encoder_decoder: Whether the prompt is read by an encoder.
    """
    ids = prompt["input_ids"].tolist()
    return (
        _make_language_model_encoding(ids, answer)
        if encoder_decoder
        else _make_language_model_encoding([*ids, *answer], [IGNORED] * len(ids) + [*answer])
    )


def _make_language_model_encoding(ids: Sequence[int], labels: Sequence[int] | None = None) -> Encoding:
    columns = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    if labels is not None:
        columns["labels"] = labels
    return {name: np.array(values, np.int32) for name, values in columns.items()}


def _count_shared_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _first_labelled_token(labels: Sequence[int]) -> int:
    return next(index for index, label in enumerate(labels) if label != IGNORED)
