"""Stacked experts: each is a layer, and PEFT computes with what is written what it computes with the originals."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from osrm_cli.models.peft_model import make_lora_config
from tests.adapters.formats.factories import deltas

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "mixtral": lambda: MixtralConfig(intermediate_size=24, num_local_experts=3, **SMALL),
    "qwen": lambda: Qwen2MoeConfig(
        intermediate_size=24, moe_intermediate_size=12, shared_expert_intermediate_size=20, num_experts=3, **SMALL
    ),
}


def model(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 15).reshape(2, 6)).logits


def save(folder, family="mixtral", seed=1, parameters=BOTH, **settings):
    chosen = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "target_parameters": parameters, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model(family), LoraConfig(task_type="CAUSAL_LM", **chosen))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        peft_model.eval().save_pretrained(str(folder))
    return peft_model


def load(folder, family="mixtral"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model(family), str(folder)).eval()


def with_updates(family, adapter):
    """The model with each expert's update added to its slice of the stacked weights."""
    base = model(family)
    for layer in adapter.layers:
        delta, (name, _, number) = adapter.delta(layer).dense(), layer.rpartition(".")
        if number.isdecimal():
            base.get_parameter(name).data[int(number)] += delta
        else:
            base.get_submodule(layer).weight.data += delta
    return base


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"parameters": BOTH[1:], "target_modules": []},
        {"parameters": BOTH[:1], "use_rslora": True},
        {"rank_pattern": {"experts.down_proj": 5}, "alpha_pattern": {"experts.gate_up_proj": 7}},
    ],
    ids=["both", "one", "rslora", "patterns"],
)
@pytest.mark.filterwarnings("ignore")
def test_each_expert_is_a_layer_with_peft_s_update(tmp_path, family, settings):
    peft_model = save(tmp_path / "a", family, **settings)
    adapter = open_adapter(tmp_path / "a")
    experts = [layer for layer in adapter.layers if "experts" in layer]
    assert len(experts) == 2 * 3 * len(settings.get("parameters", BOTH))
    torch.testing.assert_close(logits(with_updates(family, adapter)), logits(peft_model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_peft_to_peft_is_the_same_adapter(tmp_path, family):
    peft_model = save(tmp_path / "a", family, rank_pattern={"experts.down_proj": 5})
    convert_adapter(tmp_path / "a", tmp_path / "b")
    old, new = open_adapter(tmp_path / "a"), open_adapter(tmp_path / "b")
    assert new.layers == old.layers
    torch.testing.assert_close(deltas(new), deltas(old), rtol=0, atol=0)
    torch.testing.assert_close(logits(load(tmp_path / "b", family)), logits(peft_model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", ["task-arith", "ties", "tsv"])
def test_peft_computes_with_a_merge_what_its_updates_say(tmp_path, family, method):
    save(tmp_path / "a", family, seed=1)
    save(tmp_path / "b", family, seed=2, parameters=BOTH[:1])
    merge_adapters([tmp_path / "a", tmp_path / "b"], method, out=tmp_path / "merged")
    adapter = open_adapter(tmp_path / "merged")
    assert set(adapter.config.target_parameters) == set(BOTH)
    expected = logits(with_updates(family, adapter))
    assert not torch.allclose(expected, logits(model(family)), atol=1e-2)
    torch.testing.assert_close(logits(load(tmp_path / "merged", family)), expected, rtol=1e-5, atol=1e-5)


def test_a_cut_of_every_expert(tmp_path):
    save(tmp_path / "a")
    result = convert_adapter(tmp_path / "a", tmp_path / "b", rank=1)
    assert result.ranks == (1, 1)
    adapter = open_adapter(tmp_path / "b")
    torch.testing.assert_close(
        logits(load(tmp_path / "b")), logits(with_updates("mixtral", adapter)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("format", ["kohya", "diffusers", "mlx"])
def test_other_formats_cannot_name_experts(tmp_path, format):
    save(tmp_path / "a")
    out = tmp_path / ("b" if format == "mlx" else "b.safetensors")
    with pytest.raises(OsrmError, match="adapts the expert"):
        convert_adapter(tmp_path / "a", out, format, component="text_encoder")
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["mlp.experts.w1", "mlp.experts.w2"]}, "the order of w1, w2"),
        ({"r": 4}, "expected a multiple of the rank 4"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, settings, message):
    save(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(OsrmError, match=message):
        open_adapter(tmp_path / "a")


def test_no_model_is_run_with_experts(tmp_path):
    save(tmp_path / "a")
    with pytest.raises(OsrmError, match="stack experts, with which no model can be run here"):
        make_lora_config(open_adapter(tmp_path / "a"))
