"""Models written by a merge: each weight has the orientation of its architecture, and one result."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
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
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, model.config.vocab_size - 1]])).logits


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


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"], ids=["changed", "copied"]
)
def test_a_base_model_with_nan_is_refused(tmp_path, name):
    base = save_llama(tmp_path / "base")
    save(tmp_path / "a", base, target_modules=["q_proj"])
    tensors = load_file(base / "model.safetensors")
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OsrmError, match=f"NaN in {name}: a weight of .*model.safetensors"):
        merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tensors[name].view(-1)[3] = -torch.inf
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors")[name].view(-1)[3] == -torch.inf


def test_no_update_is_held_as_a_whole(tmp_path, monkeypatch):
    base = save_llama(tmp_path / "base")
    save(tmp_path / "a", base, target_modules=["q_proj", "down_proj"])
    monkeypatch.setattr(LowRank, "dense", lambda _: pytest.fail("a whole update"))
    merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "out")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, with_adapter(base, tmp_path / "a"), rtol=1e-4, atol=1e-5)


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
    with pytest.raises(OsrmError, match=r"a and .*b differ in lm_head\.weight, which is stored as a whole"):
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


# --- tied tensors -----------------------------------------------------------------------------------------------------


def save_llama(folder, **settings):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**{"vocab_size": 60, "tie_word_embeddings": True, **sizes, **settings})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


TIED = {
    "output layer": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "output layer as a whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding as a whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore")  # PEFT's remarks on tied layers
@pytest.mark.parametrize("settings", TIED.values(), ids=TIED)
@pytest.mark.parametrize("is_stored_twice", [False, True])
def test_tied_tensors_are_untied_where_one_use_changes(tmp_path, settings, is_stored_twice):
    base = save_llama(tmp_path / "base")
    if is_stored_twice:  # as earlier versions saved them
        tensors = load_file(base / "model.safetensors")
        save_file(
            {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors"
        )
    save(tmp_path / "a", base, **settings)
    expected = with_adapter(base, tmp_path / "a")
    merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not found.config.tie_word_embeddings
    torch.testing.assert_close(logits(found), expected, atol=1e-5, rtol=1e-4)


def test_tied_tensors_stay_one_where_no_use_changes(tmp_path):
    base = save_llama(tmp_path / "base")
    save(tmp_path / "a", base, target_modules=["q_proj"])
    merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings


@pytest.mark.filterwarnings("ignore")
def test_what_an_architecture_needs_to_be_one_is_refused(tmp_path, tiny_writer):
    base = tiny_writer("t5")
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), LoraConfig(target_modules=["lm_head"]))
    model.save_pretrained(str(tmp_path / "a"))
    for is_dry in (True, False):
        with pytest.raises(OsrmError, match=r"lm_head.weight and .* are one tensor in its architecture"):
            merge_adapters([tmp_path / "a"], form="model", model=str(base), dry_run=is_dry, out=tmp_path / "merged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("is_tied", "settings"),
    [
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (False, {"target_modules": ["q_proj"]}),  # PEFT stores resized embeddings unasked
        (True, {"target_modules": ["q_proj"]}),
    ],
    ids=["whole", "whole, tied", "adapted", "beside", "beside, tied"],
)
def test_added_tokens(tmp_path, is_tied, settings):
    base = save_llama(tmp_path / "base", tie_word_embeddings=is_tied)

    def resized():
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(64, mean_resizing=False)
        return model

    model = get_peft_model(resized(), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "a"))
    expected = logits(model)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    doubles = ("lora_", "original_module", "modules_to_save")  # PEFT stores whole modules under further names
    beside = {
        name.removeprefix("base_model.model."): x for name, x in stored.items() if not any(map(name.count, doubles))
    }
    torch.testing.assert_close(open_adapter(tmp_path / "a").tensors_beside_factors(), beside)
    merge_adapters([tmp_path / "a"], out=tmp_path / "adapter")  # carries the new rows, on whatever base is resized
    torch.testing.assert_close(logits(PeftModel.from_pretrained(resized(), str(tmp_path / "adapter"))), expected)
    merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert found.config.vocab_size == 64
    torch.testing.assert_close(logits(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_embeddings_beside_the_factors_have_to_agree(tmp_path):
    base = save_llama(tmp_path / "base")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(64, mean_resizing=False)
        adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
        adapter.save_pretrained(str(tmp_path / name))
    merge_adapters([tmp_path / "a", tmp_path / "b"], out=tmp_path / "ab")
    stored, written = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "ab"))
    name = "base_model.model.model.embed_tokens.weight"
    torch.testing.assert_close(written[name], stored[name])
    with pytest.raises(OsrmError, match=r"/a and .*/c differ in (lm_head|model\.embed_tokens)\.weight"):
        merge_adapters([tmp_path / "a", tmp_path / "c"], out=tmp_path / "ac")


# --- names of another version, quantized models -----------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all-linear", r".*language_model.*\.(q_proj|down_proj)"])
def test_a_vision_language_model_whose_files_have_older_names(tmp_path, targets):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **sizes)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(vocab_size=60, **sizes), image_token_id=59, image_token_index=59
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert "model.language_model.layers.0.self_attn.q_proj.weight" not in stored  # else the test shows nothing
    load = AutoModelForImageTextToText.from_pretrained
    model = get_peft_model(load(tmp_path / "base"), LoraConfig(r=2, target_modules=targets))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "a"))
    merge_adapters([tmp_path / "a"], form="model", model=str(tmp_path / "base"), out=tmp_path / "merged")
    expected = model.merge_and_unload().state_dict()
    found = load(tmp_path / "merged").state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["four bits", "packed"])
def test_a_quantized_base_model_is_named_as_the_reason(base, tmp_path, kind):
    save(tmp_path / "a", base, target_modules=["c_fc"], fan_in_fan_out=True)
    method = {"four bits": "bitsandbytes", "packed": "gptq"}[kind]
    path, config = base / "model.safetensors", base / "config.json"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("c_fc.weight")]:
        packed = torch.zeros(tensors.pop(name).numel() // 2, 1, dtype=torch.uint8)
        tensors[name if kind == "four bits" else name.replace("weight", "qweight")] = packed
    save_file(tensors, path)
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": method}}))
    for is_dry in (True, False):
        with pytest.raises(OsrmError, match=f"is quantized \\({method}\\): it holds no plain weight of"):
            merge_adapters([tmp_path / "a"], form="model", model=str(base), dry_run=is_dry, out=tmp_path / "merged")
