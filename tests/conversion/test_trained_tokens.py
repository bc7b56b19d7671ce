"""Adapters that have trained rows of the embedding: PEFT computes with the plain adapter what it computes with them."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
IDS = torch.arange(40).reshape(4, 10)


def save_base(folder, is_tied):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=is_tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def save_adapter(folder, base, indices, seed=1):
    """The adapter's logits; its rows are random, whatever its factors are."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=indices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name or "trainable_tokens_delta" in name:
            noise = (
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)) if "delta" in name else None
            )
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 if noise is None else noise
    adapter.save_pretrained(str(folder))
    with torch.no_grad():
        return adapter.eval()(IDS).logits


def load(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("indices", [[3, 7], {"embed_tokens": [39]}], ids=["list", "names"])
def test_peft_computes_the_same(tmp_path, is_tied, indices):
    save_base(tmp_path / "base", is_tied)
    expected = save_adapter(tmp_path / "a", tmp_path / "base", indices)
    convert_adapter(tmp_path / "a", tmp_path / "plain")
    torch.testing.assert_close(load(tmp_path / "base", tmp_path / "plain"), expected, rtol=1e-5, atol=1e-5)
    merge_adapters([tmp_path / "plain"], options={"lambda": 1.0}, form="model", out=tmp_path / "m")
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()(IDS).logits
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_several_adapters_agree_or_are_refused(tmp_path):
    save_base(tmp_path / "base", False)
    for name, indices in {"a": [3], "b": [3], "c": [4]}.items():
        save_adapter(tmp_path / name, tmp_path / "base", indices, seed=ord(name))
        convert_adapter(tmp_path / name, tmp_path / f"plain-{name}")
    merge_adapters([tmp_path / "plain-a", tmp_path / "plain-b"], out=tmp_path / "m")
    with pytest.raises(OsrmError, match="embed_tokens"):
        merge_adapters([tmp_path / "plain-a", tmp_path / "plain-c"], out=tmp_path / "m2")


@pytest.mark.parametrize(
    "indices", [[99], [1, 2], {"x": [1]}, {"embed_tokens": ["1"]}, {"embed_tokens": [-1]}], ids=str
)
def test_rows_that_do_not_fit_are_refused(tmp_path, indices):
    save_base(tmp_path / "base", False)
    save_adapter(tmp_path / "a", tmp_path / "base", [3])
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": indices}))
    with pytest.raises(OsrmError, match="embed_tokens"):
        convert_adapter(tmp_path / "a", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
