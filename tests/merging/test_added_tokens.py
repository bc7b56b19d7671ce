"""Adapters whose folder has a tokenizer with an added token: what arrives in a merged adapter and in a whole model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from osrm_cli.adapters.tokenizer_files import TOKENIZER_FILES
from osrm_cli.merging.merge import merge_adapters

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, that embeddings have grown
WITHIN, BEYOND = ["<mask>"], ["<tool>", "</tool>"]  # the first is a word of the base model's vocabulary
TASKS = ("a", "b")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def save_base(folder: Path, source: Path) -> Path:
    """A base model whose tokenizer has the files of older versions too, with other special tokens and a template."""
    shutil.copytree(source, folder)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": ["w7"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps({"<old>": 69}))
    (folder / "chat_template.jinja").write_text("{{ 'of the base' }}")
    return folder


def save_adapter(folder: Path, base: Path, tokens: list[str], seed: int, **settings: Any) -> Any:
    """An adapter as a trainer leaves it that has added special tokens; its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens, "pad_token": tokens[0]})
    tokenizer.chat_template = "{{ 'of the adapter' }}"
    model = AutoModelForCausalLM.from_pretrained(base)
    if settings.pop("is_resized", False):
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **settings)
    peft_model = get_peft_model(model, config)
    rows, factors = torch.Generator().manual_seed(9), torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=factors) * 0.1
        elif "trainable_tokens_delta" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=rows)
    peft_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "within": (WITHIN, {}),
    "within, its row trained": (WITHIN, {"trainable_token_indices": [4]}),
    "beyond, never trained": (BEYOND, {}),
    "beyond, whole embeddings trained": (BEYOND, {"is_resized": True, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "beyond, beside the factors": (BEYOND, {"is_resized": True}),  # which PEFT stores unasked
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_their_embeddings_arrive(case: str, tiny_writer: Callable[[str], Path], tmp_path: Path) -> None:
    tokens, settings = CASES[case]
    base = save_base(tmp_path / "base", tiny_writer("llama"))
    before = load_file(base / "model.safetensors")
    for seed, task in enumerate(TASKS):
        theirs = save_adapter(tmp_path / task, base, tokens, seed, **settings)
    adapters = [tmp_path / task for task in TASKS]
    merge_adapters(adapters, options={"lambda": 0.5}, out=tmp_path / "merged")
    merge_adapters(adapters, options={"lambda": 0.5}, form="model", model=str(base), out=tmp_path / "whole")
    text = f"w1 {tokens[-1]} w2 {tokens[0]}"
    for folder in (tmp_path / "merged", tmp_path / "whole"):
        ours = AutoTokenizer.from_pretrained(folder)
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.get_added_vocab() == theirs.get_added_vocab()
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.all_special_tokens == theirs.all_special_tokens
        assert ours.chat_template == theirs.chat_template
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.convert_tokens_to_ids(tokens[-1]) in ours(text).input_ids
        assert tokenizer_files(folder) == tokenizer_files(tmp_path / "a")

    stored, whole = (load_file(tmp_path / name) for name in ("a/adapter_model.safetensors", "whole/model.safetensors"))
    merged = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    doubles = (".lora_", ".original_module.", ".modules_to_save.")  # PEFT stores whole modules under further names
    beside = {name: x for name, x in stored.items() if not any(map(name.count, doubles))}
    assert {name for name in merged if ".lora_" not in name} == set(beside)
    assert all(torch.equal(merged[name], tensor) for name, tensor in beside.items())
    size = len(theirs) if settings.get("is_resized") else 69
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").config.vocab_size == size
    for name in EMBEDDINGS:
        expected = before[name].clone()
        if size > 69:
            expected = beside[f"base_model.model.{name}"]
        elif "trainable_token_indices" in settings and name == EMBEDDINGS[0]:
            (expected[4],) = beside.values()
            assert not torch.equal(expected, before[name])
        assert whole[name].shape == (size, 16)
        assert torch.equal(whole[name], expected)


def test_settings_without_a_vocabulary_leave_the_base_model_s(
    tiny_writer: Callable[[str], Path], tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", tiny_writer("llama"))
    for seed, task in enumerate(TASKS):
        save_adapter(tmp_path / task, base, WITHIN, seed)
        for name in set(tokenizer_files(tmp_path / task)) - {"chat_template.jinja"}:
            (tmp_path / task / name).unlink()
    adapters = [tmp_path / task for task in TASKS]
    merge_adapters(adapters, form="model", model=str(base), out=tmp_path / "whole")
    expected = {**tokenizer_files(base), **tokenizer_files(tmp_path / "a")}
    assert tokenizer_files(tmp_path / "whole") == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").chat_template == "{{ 'of the adapter' }}"
