"""Examples to padded batches, tokenized and grouped by length; a classifier's logits, batch by batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.task import Example

Encoding = dict[str, NDArray[np.int32]]  # a list of ids takes several times the room

TOKENIZER_CHUNK = 256  # examples in a call of the tokenizer, which holds far more of each than its ids
# Of an average example in a batch, at most: memory then does not grow with the longest text.
MAX_TOKENS_PER_EXAMPLE = 64
# A batch of so many tokens keeps a machine busy: it takes no example shorter than this share of its longest, since the
# rest would be padding.
MIN_BATCH_TOKENS = 1024
MIN_LENGTH_RATIO = 0.9


def tokenize_examples(tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Encoding]:
    """Token ids of each example, not padded.

    Args:
        tokenizer: A tokenizer of transformers.
        examples: One text each, or a pair each.
        max_length: Tokens to keep, special ones included; of a pair, the longer text is cut first.

    Raises:
        OsrmError: If ``max_length`` leaves no room for text.
    """
    if not examples:
        return []
    special = tokenizer.num_special_tokens_to_add(pair=len(examples[0].texts) == 2)
    if max_length <= special:
        raise OsrmError(
            f"a length of {max_length} tokens leaves no room for text beside {special} special tokens",
            "choose a larger --max-length",
        )
    settings = {"truncation": "longest_first", "max_length": max_length, "return_attention_mask": True}
    encodings: list[Encoding] = []
    for start in range(0, len(examples), TOKENIZER_CHUNK):
        texts = zip(*(example.texts for example in examples[start : start + TOKENIZER_CHUNK]), strict=True)
        found = tokenizer(*map(list, texts), **settings)
        rows = zip(*found.values(), strict=True)
        encodings += (_encoding(tokenizer, dict(zip(found.keys(), row, strict=True))) for row in rows)
    return encodings


def _encoding(tokenizer: Any, found: dict[str, list[int]]) -> Encoding:
    if not found["input_ids"]:  # an empty text, to which the tokenizer adds nothing of its own: the end token alone
        end = {"input_ids": [tokenizer.eos_token_id], "attention_mask": [1]}
        found = {key: end.get(key, [0]) for key in found}
    return {key: np.array(ids, np.int32) for key, ids in found.items()}


def group_by_length(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Indices grouped into batches of like length, the longest first, so that too large a batch fails at once.

    A batch of ``MIN_BATCH_TOKENS`` takes no example shorter than ``MIN_LENGTH_RATIO`` of its longest one.

    Args:
        lengths: Number of tokens of each example.
        batch_size: Examples in a batch, at most.
        max_tokens: Tokens in a padded batch, at most; an example longer than that has a batch of its own. ``None`` for
            ``MAX_TOKENS_PER_EXAMPLE * batch_size``.
    """
    max_tokens = max_tokens or MAX_TOKENS_PER_EXAMPLE * batch_size
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        wanted = longest * len(batch) < MIN_BATCH_TOKENS or lengths[index] >= MIN_LENGTH_RATIO * longest
        if batch and len(batch) < batch_size and longest * (len(batch) + 1) <= max_tokens and wanted:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def collate_batch(
    encodings: Sequence[Mapping[str, Sequence[int] | NDArray[np.int32]]],
    tokenizer: Any,
    device: torch.device,
    pad_to: int | None = None,
) -> dict[str, torch.Tensor]:
    """Stack encodings into tensors of shape ``(batch, length)``.

    Padding goes to the right whatever ``tokenizer.padding_side`` says: a model with absolute positions that does not
    derive them from the mask would see the same text elsewhere, and results must not depend on the padding.

    Args:
        encodings: From ``tokenize_examples``.
        tokenizer: Knows the ids to pad with.
        device: Where the tensors are to lie.
        pad_to: Length to pad to at least; by default the longest encoding's.

    Raises:
        OsrmError: If the tokenizer has no padding token and the lengths differ.
    """
    length = max(pad_to or 0, *(len(encoding["input_ids"]) for encoding in encodings))
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
    if padding["input_ids"] is None and any(len(encoding["input_ids"]) < length for encoding in encodings):
        raise OsrmError(
            f"the tokenizer of {tokenizer.name_or_path} has no padding token",
            "set pad_token in its tokenizer_config.json, or use --batch-size 1",
        )
    shape = len(encodings), length
    batch = {key: np.full(shape, padding[key] or 0, np.int64) for key in encodings[0]}
    for row, encoding in enumerate(encodings):
        for key, ids in encoding.items():
            batch[key][row, : len(ids)] = ids
    return {key: torch.from_numpy(rows).to(device) for key, rows in batch.items()}


def compute_logits(
    model: torch.nn.Module,
    encodings: Sequence[Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """Run a classifier over examples, in batches of like length.

    Args:
        model: A classifier of transformers, or PEFT's wrapper of one.
        encodings: From ``tokenize_examples``.
        tokenizer: Knows the ids to pad with.
        device: Where the model lies.
        batch_size: Examples in a batch, at most.
        advance: Called with the number of examples that are done.

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
