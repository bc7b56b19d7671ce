"""Losses and answers equal transformers' own, one example at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from osrm_cli.errors import OsrmError
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.language_model import load_language_model, task_type
from osrm_cli.models.token_batches import IGNORED
from osrm_cli.tasks.loading import load_split

CPU = torch.device("cpu")
FAMILIES = ["llama", "gpt2", "qwen2", "mistral", "gemma2", "t5"]


def quiet(_: int) -> None:
    """No progress."""


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_writer: Callable[[str], Path]) -> TextBackbone:
    loaded = TextBackbone.load(tiny_writer(request.param), CPU)
    torch.manual_seed(1)
    for parameter in loaded.model.parameters():  # the small initial weights would give equal losses to all words
        parameter.data += 0.1 * torch.randn_like(parameter)
    return loaded


def test_loss_of_a_batch_is_transformers_own_of_each_example(backbone: TextBackbone, completion_tasks: Path) -> None:
    data = load_split("backwards", completion_tasks, "dev")
    encodings = backbone.completions(64).encode(data.text_examples)[1]
    losses = backbone.losses(backbone.model, encodings, 5, quiet)
    for index, encoding in enumerate(encodings):
        alone = {name: torch.from_numpy(values).long()[None] for name, values in encoding.items()}
        with torch.no_grad():
            expected = backbone.model(**alone).loss  # labels of -100 on the prompt
        assert losses.nll[index] / losses.tokens[index] == pytest.approx(float(expected), abs=1e-5)
    assert losses.mean() == pytest.approx(float(losses.nll.sum() / losses.tokens.sum()))
    assert losses.mean([0]) == pytest.approx(float(losses.nll[0] / losses.tokens[0]))


def test_answers_of_a_batch_are_generate_s_one_by_one(backbone: TextBackbone, completion_tasks: Path) -> None:
    data = load_split("same", completion_tasks, "dev")
    prompts = backbone.completions(64).encode_prompts(data.text_examples, 8)
    answers = backbone.generate(backbone.model, prompts, 5, 8, [], quiet)
    assert len(set(answers)) > 1
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt["input_ids"]).long()[None]
        written = backbone.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
        start = 0 if backbone.model.config.is_encoder_decoder else ids.shape[1]
        assert answer == backbone.tokenizer.decode(written[start:], skip_special_tokens=True)


def test_an_answer_ends_at_a_stop_string(tiny_writer: Callable[[str], Path], completion_tasks: Path) -> None:
    backbone = TextBackbone.load(tiny_writer("qwen2"), CPU)
    data = load_split("same", completion_tasks, "dev")
    prompts = backbone.completions(64).encode_prompts(data.text_examples[:1], 12)
    (whole,) = backbone.generate(backbone.model, prompts, 5, 12, [], quiet)
    stop = whole[3]
    (cut,) = backbone.generate(backbone.model, prompts, 5, 12, [stop], quiet)
    assert cut == whole.partition(stop)[0]


def test_stop_texts_with_a_tokenizer_of_whole_words() -> None:
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", "</s>", "one", "two", "three"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), pad_token="<pad>", eos_token="</s>"
    )
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(words), **sizes)).eval()
    backbone = TextBackbone(Path("nowhere"), model, tokenizer, CPU)
    prompts = [{"input_ids": [3, 4], "attention_mask": [1, 1]}] * 2

    def answers(stop: list[str]) -> list[str]:
        return backbone.generate(model, prompts, 2, 6, stop, quiet)

    whole = answers([])[0]
    first, _, second = whole.partition(" ")
    assert second
    assert answers([first]) == [""] * 2
    assert answers(["nothing of it"]) == [whole] * 2


def test_logits_before_the_completion_are_not_computed(tiny_writer: Callable[[str], Path]) -> None:
    from osrm_cli.models.text.generation import completion_logits

    backbone = TextBackbone.load(tiny_writer("llama"), CPU)
    ids = torch.arange(5, 15)[None]
    labels = torch.cat([torch.full((1, 7), IGNORED), ids[:, 7:]], 1)
    logits, targets = completion_logits(
        backbone.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    )
    assert logits.shape[1] == 3
    assert targets.tolist() == ids[:, 7:].tolist()
    whole = backbone.model(ids).logits[:, 6:9]
    torch.testing.assert_close(logits, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_kind_of_a_language_model(family: str, tiny_writer: Callable[[str], Path]) -> None:
    folder = tiny_writer(family)
    loaded: Any = load_language_model(folder, load_tokenizer(folder), torch.float32)
    assert task_type(loaded.model) == ("SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM")
    assert loaded.heads == []


@pytest.mark.parametrize(("family", "reason"), [("bert", "a bert is an encoder"), ("llama", "its weights lack")])
def test_models_that_cannot_write(family: str, reason: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(family)
    with pytest.raises(OsrmError, match=f"cannot write text: {reason}") as caught:
        load_language_model(folder, load_tokenizer(folder), torch.float32)
    assert "--model" in (caught.value.hint or "")
