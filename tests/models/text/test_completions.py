"""Tokens of prompts and completions, beside TRL's, and errors that name the row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.text.completions import CompletionTokenizer, chat_template_record
from osrm_cli.models.token_batches import IGNORED
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.task import TextExample

TEMPLATE = (
    "{% for message in messages %}{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{{ message.role[0] + ' ' + message.content + ' </s> ' }}{% endfor %}{% if add_generation_prompt %}a {% endif %}"
)
# What a turn of the assistant trains is marked, for TRL's loss on these turns alone.
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ ' ' + message.role[0] + ' ' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' a ' }}{% endif %}"
)

LINES_TEMPLATE = (
    "{% for message in messages %}{{ message.role + '\\n' + message.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)


def example(prompt: Any, completion: Any, **fields: Any) -> TextExample:
    return TextExample(("", ""), None, prompt, completion, "train.jsonl:7", **fields)


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*turns: str) -> list[dict[str, str]]:
    return [say("assistant" if number % 2 else "user", text) for number, text in enumerate(turns)]


ROWS: dict[str, list[Any]] = {
    "texts": [{"prompt": "w1 w2 good ", "completion": "w2 w1"}, {"prompt": "w3 ", "completion": "w3 w4 w5"}],
    "chats in two": [
        {"prompt": chat("w1 w2"), "completion": chat("", "w2 w1")[1:]},
        {"prompt": [say("system", "w9"), *chat("w3", "w4", "w5")], "completion": chat("", "w6 w7 w8")[1:]},
    ],
    "chats": [
        {"messages": chat("w1 w2", "w2 w1")},
        {"messages": [say("system", "w9"), *chat("w3", "w4", "w5 w6", "w7", "w8", "good bad")]},
        {"messages": chat("w1", "w2", "w3", "w4")},
    ],
}


@pytest.fixture
def tokenizer(tiny_writer: Callable[[str], Path]) -> Any:
    loaded = load_tokenizer(tiny_writer("llama"))
    loaded.chat_template = TEMPLATE
    return loaded


@pytest.fixture
def letters(tiny_writer: Callable[[str], Path]) -> Any:
    """A tokenizer of single letters."""
    return load_tokenizer(tiny_writer("qwen2"))


def test_only_the_completion_and_the_end_count(letters: Any) -> None:
    (encoding,) = CompletionTokenizer(letters, False, 100).encode([example("ab", "cd")])[1]
    ids = letters("abcd")["input_ids"]
    assert encoding["input_ids"].tolist() == [*ids, letters.eos_token_id]
    assert encoding["labels"].tolist() == [IGNORED, IGNORED, *ids[2:], letters.eos_token_id]


def test_ends_that_do_not_count(tokenizer: Any) -> None:
    """Among choices neither the end token nor what a template puts after it."""
    tokenizer.chat_template = "{% for message in messages %}{{ message.content + ' </s> w9 ' }}{% endfor %}"
    chat = example((say("user", "w1"),), (say("assistant", "w2 w3"),))
    text = example("w1 ", "w2 w3")
    for encoder_decoder in (False, True):
        _, encodings = CompletionTokenizer(tokenizer, encoder_decoder, 100).encode([chat, text], with_end=False)
        for encoding in encodings:
            counting = [token for token in encoding["labels"].tolist() if token != IGNORED]
            assert counting == tokenizer("w2 w3")["input_ids"]


def test_text_alone_counts_as_a_whole(letters: Any) -> None:
    (encoding,) = CompletionTokenizer(letters, False, 100).encode([example("", "abc")])[1]
    assert encoding["labels"].tolist() == encoding["input_ids"].tolist() == [*letters("abc").input_ids, 256]


def check_against_trl(folder: Path, template: str | None, rows: list[Any], tmp_path: Path) -> None:
    """Tokens and labels of rows, read from a file as every command reads them, beside those that TRL trains with."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    (tmp_path / "tasks" / "it").mkdir(parents=True)
    (tmp_path / "tasks" / "it" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        trl.SFTConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=256,
            assistant_only_loss="messages" in rows[0],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    theirs = trainer.data_collator(list(trainer.train_dataset))
    examples = load_split("it", tmp_path / "tasks", "train").text_examples
    completions = CompletionTokenizer(tokenizer, False, 256)
    ours = completions.encode(examples)[1]
    assert len(ours) == len(rows)
    assert completions.warnings == []
    for row, encoding in enumerate(ours):
        count = len(encoding["input_ids"])
        assert encoding["input_ids"].tolist() == theirs["input_ids"][row, :count].tolist()
        assert encoding["labels"].tolist() == theirs["labels"][row, :count].tolist()
        assert (theirs["labels"][row, count:] == IGNORED).all()
        assert IGNORED in encoding["labels"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of TRL's own settings
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_trl_s_own_tokens_and_masks(family: str, kind: str, tiny_writer: Callable[[str], Path], tmp_path: Path) -> None:
    template = None if kind == "texts" else MARKED_TEMPLATE
    check_against_trl(tiny_writer(family), template, ROWS[kind], tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_follows_the_end_token_counts_as_in_trl(tiny_writer: Callable[[str], Path], tmp_path: Path) -> None:
    """As in ChatML, which ends every message with a line break."""
    check_against_trl(tiny_writer("qwen2"), LINES_TEMPLATE, ROWS["chats in two"], tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "t5"])
@pytest.mark.parametrize("system", [[], [say("system", "w9 ")]], ids=["no system message", "system message"])
def test_chats_are_what_transformers_makes_of_them(
    family: str, system: list[dict[str, str]], tiny_writer: Callable[[str], Path]
) -> None:
    tokenizer = load_tokenizer(tiny_writer(family))
    tokenizer.chat_template = MARKED_TEMPLATE
    asked = [*system, say("user", "w1"), say("assistant", "w2"), say("user", "w3 w4")]
    row = example(asked, [say("assistant", "w5 w6")])
    completions = CompletionTokenizer(tokenizer, family == "t5", 256)
    (encoding,) = completions.encode([row])[1]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*asked, *row.completion], return_dict=True)["input_ids"]
    counted = [label for label in encoding["labels"].tolist() if label != IGNORED]
    assert completions.encode_prompts([row], 8)[0]["input_ids"].tolist() == prompt
    assert encoding["input_ids"].tolist() == (prompt if family == "t5" else whole)
    assert [*prompt, *counted] == whole
    assert tokenizer.apply_chat_template([*asked, *row.completion], tokenize=False).endswith(
        f" a w5 w6 {tokenizer.eos_token}"
    )
    assert counted[-1] == tokenizer.eos_token_id


def test_chat_goes_through_the_tokenizer_s_template(tokenizer: Any) -> None:
    chat = [say("user", "w1 w2"), say("assistant", "w3")]
    (encoding,) = CompletionTokenizer(tokenizer, False, 64).encode([example(chat[:1], chat[1:])])[1]
    whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert encoding["input_ids"].tolist() == whole
    assert tokenizer.decode([label for label in encoding["labels"] if label != IGNORED]) == "w3 </s>"


def test_every_turn_of_the_assistant_counts(tokenizer: Any) -> None:
    chat = tuple(say(*turn) for turn in [("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4")])
    (encoding,) = CompletionTokenizer(tokenizer, False, 64).encode([example(chat[:-1], chat[-1:], all_turns=True)])[1]
    counted = [label for label in encoding["labels"].tolist() if label != IGNORED]
    assert tokenizer.decode(counted) == "w2 </s> w4 </s>"


def test_prompt_is_cut_from_the_left_and_never_the_completion(letters: Any) -> None:
    (encoding,) = CompletionTokenizer(letters, False, 5).encode([example("abcdef", "xy")])[1]
    assert letters.decode(encoding["input_ids"]) == "efxy<|endoftext|>"
    assert encoding["labels"].tolist()[:2] == [IGNORED] * 2


def test_prompts_to_answer_are_those_of_training(letters: Any) -> None:
    completions, rows = CompletionTokenizer(letters, False, 100), [example("abc", "d"), example("e", "fgh")]
    prompts = completions.encode_prompts(rows, 10)
    for prompt, encoding in zip(prompts, completions.encode(rows)[1], strict=True):
        count = len(prompt["input_ids"])
        assert prompt["input_ids"].tolist() == encoding["input_ids"][:count].tolist()
        assert (encoding["labels"][:count] == IGNORED).all()
        assert encoding["labels"][count] != IGNORED


def test_encoder_decoder_reads_the_prompt_and_writes_the_completion(tiny_writer: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(tiny_writer("t5"))
    (encoding,) = CompletionTokenizer(tokenizer, True, 64).encode([example("w1 w2", "w3")])[1]
    assert tokenizer.decode(encoding["input_ids"]) == "w1 w2 </s>"
    assert tokenizer.decode(encoding["labels"]) == "w3 </s>"


def test_too_long_a_completion_is_an_error_or_left_out(letters: Any) -> None:
    rows = [example("a", "x" * 9), example("a", "b")]
    with pytest.raises(OsrmError, match=r"train.jsonl:7: the completion has 10 tokens.*--max-length 8"):
        CompletionTokenizer(letters, False, 8).encode(rows)
    completions = CompletionTokenizer(letters, False, 8, skip_long=True)
    kept, encodings = completions.encode(rows)
    assert kept == rows[1:]
    assert len(encodings) == 1
    assert completions.warnings == [
        "left out 1 of 2 examples whose completion exceeds 8 tokens, the first at train.jsonl:7"
    ]


def test_merged_border_is_told(tiny_writer: Callable[[str], Path]) -> None:
    completions = CompletionTokenizer(load_tokenizer(tiny_writer("llama")), False, 64)
    (encoding,) = completions.encode([example("w1 w2", "w3")])[1]  # "w2w3" is one word
    assert "merges the end of the prompt" in completions.warnings[0]
    assert (encoding["labels"] != IGNORED).any()


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([say("tool", "w1"), say("assistant", "w2")], "the chat template refuses the chat: unknown role tool"),
        ([say("user", "w1"), say("assistant", "w2")], None),
    ],
)
def test_roles_that_the_template_refuses(chat: list[dict[str, str]], message: str | None, tokenizer: Any) -> None:
    completions = CompletionTokenizer(tokenizer, False, 64)
    if message is None:
        assert completions.encode([example(chat[:1], chat[1:])])
        return
    with pytest.raises(OsrmError, match=f"train.jsonl:7: {message}"):
        completions.encode([example(chat[:1], chat[1:])])


def test_template_that_drops_the_system_message(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    )
    with pytest.raises(OsrmError, match=r"train.jsonl:7: the chat template drops the system message"):
        CompletionTokenizer(tokenizer, False, 64).encode(
            [example([say("system", "w9"), say("user", "w1")], [say("assistant", "w2")])]
        )


def test_no_template_and_no_end_token(letters: Any) -> None:
    row = example([say("user", "a")], [say("assistant", "b")])
    with pytest.raises(OsrmError, match=r"train.jsonl:7 holds a chat, but .* has no chat template"):
        CompletionTokenizer(letters, False, 64).encode([row])
    letters.eos_token = None
    with pytest.raises(OsrmError, match="has no end token"):
        CompletionTokenizer(letters, False, 64).encode([example("a", "b")])


def test_records_say_what_the_model_saw(tokenizer: Any) -> None:
    record = chat_template_record(tokenizer)
    assert record["eos_token"] == "</s>"
    tokenizer.chat_template += " "
    assert chat_template_record(tokenizer)["chat_template"] != record["chat_template"]
