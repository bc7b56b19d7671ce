import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from osrm_cli.errors import OsrmError
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.token_batches import (
    IGNORED,
    MIN_BATCH_TOKENS,
    MIN_LENGTH_RATIO,
    TOKENIZER_CHUNK,
    collate_batch,
    group_by_length,
    split_batch,
    tokenize_for_classifier,
)
from osrm_cli.tasks.task import Example

WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "b", "c", "d", "e"]
PAD, CLS, SEP = WORDS.index("[PAD]"), WORDS.index("[CLS]"), WORDS.index("[SEP]")
CPU = torch.device("cpu")


INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def make_tokenizer(padding_side="right", pad_token="[PAD]", model_input_names=INPUTS):
    """BERT's shape: [CLS] a [SEP] b [SEP], with token types; padding has an id other than 0 to tell it apart."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token=pad_token,
        padding_side=padding_side,
        model_input_names=model_input_names,
    )


def ids(text):
    return [WORDS.index(word) for word in text.split()]


def test_one_text():
    found = tokenize_for_classifier(make_tokenizer(), [Example(("a b",), 0), Example(("c",), 1), Example(("",), 0)], 10)
    first = {key: values.tolist() for key, values in found[0].items()}
    assert first == {"input_ids": [CLS, *ids("a b"), SEP], "token_type_ids": [0] * 4, "attention_mask": [1] * 4}
    assert [encoding["input_ids"].tolist() for encoding in found[1:]] == [[CLS, *ids("c"), SEP], [CLS, SEP]]
    assert tokenize_for_classifier(make_tokenizer(), [], 10) == []


def test_more_examples_than_one_call_takes():
    texts = list(itertools.islice(itertools.product(WORDS[4:], repeat=4), TOKENIZER_CHUNK + 10))
    found = tokenize_for_classifier(make_tokenizer(), [Example((" ".join(words),), 0) for words in texts], 10)
    assert [encoding["input_ids"].tolist() for encoding in found] == [
        [CLS, *map(WORDS.index, words), SEP] for words in texts
    ]
    assert {ids.dtype.name for encoding in found for ids in encoding.values()} == {"int32"}, "a list takes more room"


def test_a_pair_is_cut_at_its_longer_end():
    found = tokenize_for_classifier(make_tokenizer(), [Example(("a b c d e", "d"), 0), Example(("a", "b"), 0)], 7)
    assert found[0]["input_ids"].tolist() == [CLS, *ids("a b c"), SEP, *ids("d"), SEP]
    assert found[0]["token_type_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert found[1]["input_ids"].tolist() == [CLS, *ids("a"), SEP, *ids("b"), SEP]


def test_only_what_the_tokenizer_makes():
    tokenizer = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    assert tokenize_for_classifier(tokenizer, [Example(("a",), 0)], 10)[0].keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("texts", "special"), [(("a",), 2), (("a", "b"), 3)])
def test_no_room_for_text(texts, special):
    with pytest.raises(OsrmError, match=f"a length of {special} tokens is too short"):
        tokenize_for_classifier(make_tokenizer(), [Example(texts, 0)], special)
    assert (
        len(tokenize_for_classifier(make_tokenizer(), [Example(texts, 0)], special + 1)[0]["input_ids"]) == special + 1
    )


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 150), max_size=60),
    batch_size=st.integers(1, 9) | st.integers(10, 60),
    max_tokens=st.none() | st.integers(1, 200) | st.integers(1000, 4000),
)
def test_every_index_is_in_one_batch(lengths, batch_size, max_tokens):
    batches = group_by_length(lengths, batch_size, max_tokens)
    max_tokens = max_tokens or 64 * batch_size
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens
        busy = -(-MIN_BATCH_TOKENS // lengths[batch[0]])  # examples of the longest one's length
        assert all(lengths[index] >= MIN_LENGTH_RATIO * lengths[batch[0]] for index in batch[busy:])
    for batch, following in itertools.pairwise(batches):
        longest, tokens = lengths[batch[0]], len(batch) * lengths[batch[0]]
        full = len(batch) == batch_size or tokens + longest > max_tokens
        padding = tokens >= MIN_BATCH_TOKENS and lengths[following[0]] < MIN_LENGTH_RATIO * longest
        assert full or padding, "no batch is smaller than it has to be"
        assert lengths[batch[-1]] >= lengths[following[0]]


def test_equal_lengths_keep_their_order():
    assert group_by_length([3, 5, 3, 5, 3], 2) == [[1, 3], [0, 2], [4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_right(side):
    tokenizer = make_tokenizer(side)
    tokenizer._pad_token_type_id = 3  # as XLNet's tokenizer sets it
    encodings = tokenize_for_classifier(tokenizer, [Example(("a", "b c"), 0), Example(("d", "e"), 0)], 10)
    batch = collate_batch(encodings, tokenizer, CPU)
    assert batch["input_ids"].tolist() == [
        [CLS, *ids("a"), SEP, *ids("b c"), SEP],
        [CLS, *ids("d"), SEP, *ids("e"), SEP, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 3]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_pad_to():
    tokenizer = make_tokenizer()
    encodings = tokenize_for_classifier(tokenizer, [Example(("a b c",), 0)], 10)
    assert collate_batch(encodings, tokenizer, CPU, pad_to=8)["input_ids"].tolist() == [
        [CLS, *ids("a b c"), SEP, PAD, PAD, PAD]
    ]
    assert collate_batch(encodings, tokenizer, CPU, pad_to=2)["input_ids"].shape == (1, 5), "never cuts"


def test_no_padding_token():
    tokenizer = make_tokenizer(pad_token=None)
    encodings = tokenize_for_classifier(tokenizer, [Example(("a b",), 0), Example(("c d",), 0), Example(("e",), 0)], 10)
    assert collate_batch(encodings[:2], tokenizer, CPU)["input_ids"].shape == (2, 4), "none is needed here"
    with pytest.raises(OsrmError, match="has no padding token"):
        collate_batch(encodings, tokenizer, CPU)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_model_sees_the_same_text_in_any_batch(side, batch_size):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = BertModel(config).eval()
    tokenizer = make_tokenizer(side)
    examples = [Example((text,), 0) for text in ("a", "b c d e a b", "c d", "e e e", "d")]
    encodings = tokenize_for_classifier(tokenizer, examples, 16)
    alone = [model(**{k: torch.from_numpy(v)[None] for k, v in e.items()}).last_hidden_state[0] for e in encodings]
    for plan in group_by_length([len(e["input_ids"]) for e in encodings], batch_size):
        hidden = model(**collate_batch([encodings[i] for i in plan], tokenizer, CPU)).last_hidden_state
        for row, index in enumerate(plan):
            torch.testing.assert_close(hidden[row, : len(alone[index])], alone[index], atol=1e-5, rtol=0)


def test_an_empty_text_is_read_as_the_end_token(tiny_model):
    tokenizer = load_tokenizer(tiny_model("gpt2"))  # adds nothing of its own
    encodings = tokenize_for_classifier(tokenizer, [Example(("",), 0), Example(("w1 w2",), 0)], 8)
    assert encodings[0]["input_ids"] == [tokenizer.eos_token_id]
    assert collate_batch(encodings, tokenizer, CPU)["attention_mask"].tolist() == [[1, 0], [1, 1]]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12), st.integers(1, 200))
def test_parts_of_a_batch_hold_each_row_once_and_as_many_tokens_as_may_be(
    sizes: list[tuple[int, int]], max_tokens: int
) -> None:
    """Of an encoder-decoder, whose labels have a length of their own."""
    width, label_width = max(size for size, _ in sizes), max(size for _, size in sizes)
    batch = {
        "input_ids": torch.stack([torch.full((width,), row) for row in range(len(sizes))]),
        "attention_mask": torch.tensor([[1] * size + [0] * (width - size) for size, _ in sizes]),
        "labels": torch.tensor([[7] * size + [IGNORED] * (label_width - size) for _, size in sizes]),
    }
    parts = split_batch(batch, max_tokens)
    if len(sizes) * max(width, label_width) <= max_tokens:
        assert len(parts) == 1
        assert all(torch.equal(parts[0][key], batch[key]) for key in batch)
    rows = [int(row) for part in parts for row in part["input_ids"][:, 0]]
    assert sorted(rows) == list(range(len(sizes)))
    for part in parts:
        count, longest = len(part["labels"]), max(values.shape[1] for values in part.values())
        assert count == 1 or count * longest <= max_tokens
        assert part["attention_mask"].sum(1).tolist() == [sizes[row][0] for row in part["input_ids"][:, 0].tolist()]
        assert (part["labels"] == 7).sum(1).tolist() == [sizes[row][1] for row in part["input_ids"][:, 0].tolist()]
