"""Models written by a merge: each weight has the orientation of its architecture, and one result."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=False, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(str(tmp_path / "base"))
    return tmp_path / "base"


def save(folder, base, seed=1, **settings):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(str(folder))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, 2]])).logits


def with_adapter(base, folder):
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Setting `save_embedding_layers`")  # PEFT's remarks
@pytest.mark.parametrize("targets", [["c_attn", "c_proj"], ["c_attn", "c_proj", "lm_head"]], ids=["conv", "with head"])
@pytest.mark.parametrize("flag", [True, False])
def test_conv1d_weights_whatever_the_flag_says(base, tmp_path, targets, flag):
    save(tmp_path / "a", base, target_modules=targets)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": flag}))
    merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "merged")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, with_adapter(base, tmp_path / "a"), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_two_results_for_one_weight_are_refused(base, tmp_path):
    save(tmp_path / "a", base, target_modules=["c_attn"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        if ".h.0." in name:  # under the name of the bare model as well
            tensors[name.replace("transformer.", "")] = tensors[name].clone()
    save_file(tensors, path)
    with pytest.raises(OsrmError, match=r"layers .*h\.0.* are both transformer\.h\.0\.attn\.c_attn\.weight of"):
        merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "merged")


# --- modules trained as a whole ---------------------------------------------------------------------------------------

WHOLE = {"target_modules": ["c_attn"], "modules_to_save": ["lm_head", "ln_f"], "fan_in_fan_out": True}


def test_modules_of_one_adapter_are_carried_over_exactly(base, tmp_path):
    save(tmp_path / "a", base, **WHOLE)
    expected = with_adapter(base, tmp_path / "a")
    result = merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "model")
    assert result.notes[0].startswith(
        "lm_head.weight, transformer.ln_f.bias, transformer.ln_f.weight: stored as a whole"
    )
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected, atol=1e-5, rtol=1e-4
    )
    merge_adapters([tmp_path / "a"], out=tmp_path / "adapter")
    assert torch.equal(with_adapter(base, tmp_path / "adapter"), expected)
    assert not (tmp_path / "adapter" / "tasks").exists()
    assert "num_labels" not in (tmp_path / "adapter" / "README.md").read_text()


def test_modules_that_adapters_share_are_written_once(base, tmp_path):
    for name in "ab":
        save(tmp_path / name, base, **WHOLE)
    merge_adapters([tmp_path / "a", tmp_path / "b"], options={"lambda": 0.5}, out=tmp_path / "merged")
    torch.testing.assert_close(
        with_adapter(base, tmp_path / "merged"), with_adapter(base, tmp_path / "a"), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("other", [WHOLE, {**WHOLE, "modules_to_save": None}], ids=["other values", "none"])
def test_modules_that_differ_are_refused(base, tmp_path, other):
    save(tmp_path / "a", base, 1, **WHOLE)
    save(tmp_path / "b", base, 2, **other)
    with pytest.raises(
        OsrmError, match=r"a and .*b differ in lm_head\.weight, which modules_to_save stores as a whole"
    ):
        merge_adapters([tmp_path / "a", tmp_path / "b"], out=tmp_path / "merged")


def test_modules_that_the_base_model_cannot_hold_are_refused(base, tmp_path):
    save(tmp_path / "a", base, **WHOLE)
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.lm_head.weight"
    save_file({**tensors, name: torch.cat([tensors[name], tensors[name][:4]])}, path)
    with pytest.raises(OsrmError, match=r"lm_head.weight is \(64, 16\) in the adapter, \(60, 16\) in"):
        merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "merged")
    with pytest.raises(OsrmError, match=r"trained lm_head\.weight as a whole, which emr cannot hold"):
        merge_adapters([tmp_path / "a"], "emr", out=tmp_path / "merged")
    save(tmp_path / "b", base, **WHOLE)
    config = base / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(OsrmError, match="ties its output layer to the embeddings"):
        merge_adapters([tmp_path / "b"], form="model", model=str(base), out=tmp_path / "merged")
