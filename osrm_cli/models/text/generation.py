"""Losses of completions, and answers written by a language model, in batches of similar length."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import StoppingCriteria

from osrm_cli.models.token_batches import IGNORED, Encoding, collate_batch, group_by_length

Advance = Callable[[int], None]


@dataclass(frozen=True)
class CompletionLosses:
    """Losses of some examples.

    Attributes:
        nll: Sum of ``-ln p`` over the completion's tokens of each example, ``(n,)``, float64.
        tokens: Number of these tokens, ``(n,)``.
    """

    nll: torch.Tensor
    tokens: torch.Tensor

    def mean(self, rows: Sequence[int] | None = None) -> float:
        """Mean loss per token of some examples, or of all: long completions count for more."""
        chosen = slice(None) if rows is None else list(rows)
        return float(self.nll[chosen].sum() / self.tokens[chosen].sum())


def completion_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels at the positions that may count: logits before the first completion are not computed.

    Args:
        model: A language model of transformers, or PEFT's wrapper of one, perhaps distributed.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, padded on the right.

    Returns:
        ``(batch, positions, vocabulary)``, and the label of each position's next token, ``(batch, positions)``.
    """
    labels = batch["labels"]
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    base: Any = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    if base.config.is_encoder_decoder:
        return model(**batch).logits, labels
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    counting = (labels != IGNORED).any(0).nonzero()
    first = max(0, int(counting[0]) - 1)  # the token before predicts it
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        kept = torch.arange(first, labels.shape[1] - 1, device=labels.device)
        return model(**inputs, logits_to_keep=kept).logits, labels[:, first + 1 :]
    return model(**inputs).logits[:, first:-1], labels[:, first + 1 :]


def completion_positions(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Where a completion's tokens are predicted, ``(batch, length)``, and the model's inputs without labels."""
    labels = batch["labels"]
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        decoded = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return labels != IGNORED, {**inputs, "decoder_input_ids": decoded}
    return functional.pad(labels[:, 1:] != IGNORED, (0, 1)), inputs


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``-ln p`` of each label, 0 where it does not count, ``(batch, positions)``, float32."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


def compute_completion_losses(
    model: torch.nn.Module,
    encodings: Sequence[Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    advance: Advance,
) -> CompletionLosses:
    """Loss of each example's completion.

    Args:
        model: A language model in evaluation mode.
        encodings: From ``CompletionTokenizer.encode``.
        tokenizer: Supplies the padding ids.
        device: Device of the model.
        batch_size: Maximum examples per batch.
        advance: Called with the number of examples processed.
    """
    nll = torch.zeros(len(encodings), dtype=torch.float64)
    tokens = torch.zeros(len(encodings), dtype=torch.int64)
    with torch.inference_mode():
        for rows in group_by_length([len(encoding["input_ids"]) for encoding in encodings], batch_size):
            batch = collate_batch([encodings[row] for row in rows], tokenizer, device)
            logits, labels = completion_logits(model, batch)
            nll[rows] = token_losses(logits, labels).double().sum(1).cpu()
            tokens[rows] = (labels != IGNORED).sum(1).cpu()
            advance(len(rows))
    return CompletionLosses(nll, tokens)


def generate_tokens(
    model: Any,
    prompts: Sequence[Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    max_new_tokens: int,
    stop: Sequence[str],
    advance: Advance,
) -> list[list[int]]:
    """Greedy answers, a batch at a time, with a cache of keys and values.

    Args:
        model: A language model in evaluation mode.
        prompts: From ``CompletionTokenizer.encode_prompts``.
        tokenizer: Supplies the padding and the end token.
        device: Device of the model.
        batch_size: Maximum prompts per batch.
        max_new_tokens: Longest answer.
        stop: Strings at which an answer ends.
        advance: Called with the number of answers written.

    Returns:
        The tokens of each answer, the end token among them where the model has written it.
    """
    answers: dict[int, list[int]] = {}
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1, "use_cache": True}
    cleared = {"temperature": None, "top_p": None, "top_k": None, "max_length": None}  # they belong to sampling
    with torch.inference_mode():
        for rows in group_by_length([len(prompt["input_ids"]) for prompt in prompts], batch_size):
            batch = collate_batch([prompts[row] for row in rows], tokenizer, device, left=True)
            start = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
            written = model.generate(
                **batch,
                **settings,
                **cleared,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                stopping_criteria=[_StopTexts(tokenizer, stop, start)] if stop else None,
            )
            answers.update(
                zip(rows, (_strip_answer_padding(row, tokenizer) for row in written[:, start:]), strict=True)
            )
            advance(len(rows))
    return [answers[index] for index in range(len(prompts))]


class _StopTexts(StoppingCriteria):
    """Ends an answer whose text holds one of these; transformers' own criterion fails on tokenizers of whole words."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        return torch.tensor([any(end in text for end in self.stop) for text in texts], device=input_ids.device)


def _strip_answer_padding(row: torch.Tensor, tokenizer: Any) -> list[int]:
    """The tokens to the first end token; without one, to the last that is not padding."""
    tokens: list[int] = row.tolist()
    if tokenizer.eos_token_id in tokens:
        return tokens[: tokens.index(tokenizer.eos_token_id) + 1]
    while len(tokens) > 1 and tokens[-1] == tokenizer.pad_token_id:
        tokens.pop()
    return tokens
