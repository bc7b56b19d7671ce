"""Losses and answers equal transformers' own, one example at a time."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.merged_folder import ScoredFolder
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.language_model import load_language_model, task_type
from osrm_cli.models.token_batches import IGNORED
from osrm_cli.tasks.loading import load_split
from tests import text_adapters

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


def generate_alone(model: Any, prompt: Any, end: int) -> list[int]:
    """The tokens of one answer by transformers, without padding."""
    ids = torch.from_numpy(prompt["input_ids"]).long()[None]
    with torch.no_grad():
        written = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=end)[0]
    return written[1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()


def test_answers_of_a_batch_are_generate_s_one_by_one(backbone: TextBackbone, completion_tasks: Path) -> None:
    """Token for token, and again with an end token that some of the answers hold, so that a batch has padding."""
    data = load_split("same", completion_tasks, "dev")
    prompts = backbone.completions(64).encode_prompts(data.text_examples, 8)
    tokenizer = backbone.tokenizer
    tokens = backbone.generate_tokens(backbone.model, prompts, 5, 8, [], quiet)
    assert tokens == [generate_alone(backbone.model, prompt, tokenizer.eos_token_id) for prompt in prompts]
    assert len(set(map(tuple, tokens))) > 1
    answers = backbone.generate(backbone.model, prompts, 5, 8, [], quiet)
    assert answers == [tokenizer.decode(answer, skip_special_tokens=True) for answer in tokens]
    counts = Counter(token for answer in tokens for token in set(answer[:-1]))
    end = next(token for token, count in counts.items() if count < len(tokens) and token != tokenizer.pad_token_id)
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    tokens = backbone.generate_tokens(backbone.model, prompts, 5, 8, [], quiet)
    assert tokens == [generate_alone(backbone.model, prompt, end) for prompt in prompts]
    assert len({len(answer) for answer in tokens}) > 1


def test_answers_with_an_adapter_are_peft_s_one_by_one(
    backbone: TextBackbone, completion_tasks: Path, tmp_path: Path
) -> None:
    base = backbone.folder
    text_adapters.save(tmp_path / "same", base, completion_tasks)
    alone = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(tmp_path / "same")).eval()
    data = load_split("same", completion_tasks, "dev")
    prompts, end = backbone.completions(64).encode_prompts(data.text_examples, 8), backbone.tokenizer.eos_token_id
    before = backbone.generate_tokens(backbone.model, prompts, 5, 8, [], quiet)
    (task,) = ScoredFolder.open(tmp_path / "same").choose_tasks([]).values()
    with backbone.attach(task) as model:
        tokens = backbone.generate_tokens(model, prompts, 5, 8, [], quiet)
    assert tokens == [generate_alone(alone, prompt, end) for prompt in prompts]
    assert tokens != before
    assert backbone.generate_tokens(backbone.model, prompts, 5, 8, [], quiet) == before


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
