"""Tokenize examples, group them by length into padded batches, split these, and compute a classifier's logits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.task import Example

Encoding = dict[str, NDArray[np.int32]]  # a list of ids takes several times the memory

IGNORED = -100  # label of a position that does not count

TOKENIZER_CHUNK = 256  # examples per call of the tokenizer, whose output takes far more memory than the ids
# Maximum average per example of a batch, so that memory does not grow with the longest text.
MAX_TOKENS_PER_EXAMPLE = 64
# A batch of so many tokens uses the hardware fully: it takes no example shorter than this share of its longest, since
# the rest would be padding.
MIN_BATCH_TOKENS = 1024
MIN_LENGTH_RATIO = 0.9


def tokenize_for_classifier(tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Encoding]:
    """Token ids of each example, not padded.

    Args:
        tokenizer: A tokenizer of transformers.
        examples: One text each, or a pair each.
        max_length: Tokens to keep, special ones included; of a pair, the longer text is truncated first.

    Raises:
        OsrmError: If ``max_length`` is not larger than the number of special tokens.
    """
    if not examples:
        return []
    special = tokenizer.num_special_tokens_to_add(pair=len(examples[0].texts) == 2)
    if max_length <= special:
        raise OsrmError(
            f"a length of {max_length} tokens is too short: {special} special tokens leave no room for text",
            "choose a larger length: --max-length where the command has it, else max_length in its task.toml",
        )
    settings = {"truncation": "longest_first", "max_length": max_length, "return_attention_mask": True}
    encodings: list[Encoding] = []
    for start in range(0, len(examples), TOKENIZER_CHUNK):
        texts = zip(*(example.texts for example in examples[start : start + TOKENIZER_CHUNK]), strict=True)
        columns = tokenizer(*map(list, texts), **settings)
        rows = zip(*columns.values(), strict=True)
        encodings += (_make_classifier_tokens(tokenizer, dict(zip(columns.keys(), row, strict=True))) for row in rows)
    return encodings


def _make_classifier_tokens(tokenizer: Any, columns: dict[str, list[int]]) -> Encoding:
    if not columns["input_ids"]:  # an empty text without special tokens: the end token alone
        end = {"input_ids": [tokenizer.eos_token_id], "attention_mask": [1]}
        columns = {key: end.get(key, [0]) for key in columns}
    return {key: np.array(ids, np.int32) for key, ids in columns.items()}


def group_by_length(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Indices grouped into batches of similar length, the longest first, so that too large a batch fails at once.

    A batch of ``MIN_BATCH_TOKENS`` takes no example shorter than ``MIN_LENGTH_RATIO`` of its longest one.

    Args:
        lengths: Number of tokens of each example.
        batch_size: Maximum examples per batch.
        max_tokens: Maximum tokens in a padded batch; a longer example gets a batch of its own. ``None`` for
            ``MAX_TOKENS_PER_EXAMPLE * batch_size``.
    """
    max_tokens = max_tokens or MAX_TOKENS_PER_EXAMPLE * batch_size
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        limits_padding = longest * len(batch) < MIN_BATCH_TOKENS or lengths[index] >= MIN_LENGTH_RATIO * longest
        if batch and len(batch) < batch_size and longest * (len(batch) + 1) <= max_tokens and limits_padding:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def collate_batch(
    encodings: Sequence[Mapping[str, Sequence[int] | NDArray[np.int32]]],
    tokenizer: Any,
    device: torch.device,
    pad_to: int | None = None,
    left: bool = False,
) -> dict[str, torch.Tensor]:
    """Stack encodings into tensors of shape ``(batch, length)``.

    Padding goes to the right whatever ``tokenizer.padding_side`` says: a model with absolute positions that does not
    derive them from the mask would see the same text elsewhere, and results must not depend on the padding.

    Args:
        encodings: From ``tokenize_for_classifier``.
        tokenizer: Supplies the padding ids.
        device: Device of the tensors.
        pad_to: Minimum length; by default the longest encoding's.
        left: Pad on the left, for generation, whose positions transformers derives from the mask.

    Raises:
        OsrmError: If the tokenizer has no padding token and the lengths differ.
    """
    lengths = {key: max(pad_to or 0, *(len(encoding[key]) for encoding in encodings)) for key in encodings[0]}
    padding = {
        "input_ids": tokenizer.pad_token_id,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
        "labels": IGNORED,
    }
    if padding["input_ids"] is None and any(len(e["input_ids"]) < lengths["input_ids"] for e in encodings):
        raise OsrmError(
            f"the tokenizer of {tokenizer.name_or_path} has no padding token",
            "set pad_token in its tokenizer_config.json, or use --batch-size 1",
        )
    batch = {key: np.full((len(encodings), n), padding[key] or 0, np.int64) for key, n in lengths.items()}
    for row, encoding in enumerate(encodings):
        for key, ids in encoding.items():
            batch[key][row, -len(ids) if left else 0 :][: len(ids)] = ids
    return {key: torch.from_numpy(rows).to(device) for key, rows in batch.items()}


def split_batch(batch: Mapping[str, torch.Tensor], max_tokens: int) -> list[dict[str, torch.Tensor]]:
    """Parts of a batch, of similar length; the batch itself where it is small enough.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, padded on the right, see ``collate_batch``.
        max_tokens: Maximum tokens in a part, padding included; a longer row is a part of its own.
    """
    count, width = max((values.shape for values in batch.values()), key=lambda shape: shape[1])
    if count * width <= max_tokens:
        return [dict(batch)]
    ends = torch.arange(1, width + 1, device=batch["labels"].device)
    lengths = [0] * count
    for used in (batch["attention_mask"] > 0, batch["labels"] != IGNORED):
        last = (used * ends[: used.shape[1]]).amax(1).tolist()
        lengths = list(map(max, lengths, last))
    parts = group_by_length(lengths, count, max_tokens)
    return [{key: values[rows, : lengths[rows[0]]] for key, values in batch.items()} for rows in parts]


def check_model_vocabulary(
    tokenizer: Any, encodings: Sequence[Mapping[str, Any]], model: torch.nn.Module, folder: Path
) -> None:
    """Check that a model has an embedding for every token.

    Args:
        tokenizer: Supplies the padding id.
        encodings: Of all examples.
        model: The model.
        folder: The base model's folder, for the error.

    Raises:
        OsrmError: If it has not: the tokenizer is another model's.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    largest = max([tokenizer.pad_token_id or 0, *(int(encoding["input_ids"].max()) for encoding in encodings)])
    if largest >= embeddings.weight.shape[0]:
        raise OsrmError(
            f"{folder}: its tokenizer gives token {largest}, its model has {embeddings.weight.shape[0]} embeddings",
            "save the tokenizer of this model there: tokenizer.save_pretrained(folder)",
        )


def compute_logits(
    model: torch.nn.Module,
    encodings: Sequence[Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """Run a classifier over examples, in batches of similar length.

    Args:
        model: A classifier of transformers, or PEFT's wrapper of one.
        encodings: From ``tokenize_for_classifier``.
        tokenizer: Supplies the padding ids.
        device: Device of the model.
        batch_size: Maximum examples per batch.
        advance: Called with the number of examples processed.

    Returns:
        ``(n, num_labels)``, float32, in the order of ``encodings``.
    """
    logits: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for indices in group_by_length([len(encoding["input_ids"]) for encoding in encodings], batch_size):
            batch = collate_batch([encodings[index] for index in indices], tokenizer, device)
            logits.update(zip(indices, model(**batch).logits.float().cpu(), strict=True))
            advance(len(indices))
    return torch.stack([logits[index] for index in range(len(encodings))])
