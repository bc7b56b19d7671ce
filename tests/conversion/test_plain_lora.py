"""LoHa, LoKr and DoRA as plain LoRA: PEFT computes with the result what it computes with the original."""

import json
import warnings

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, convert_to_lora, get_peft_model
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from tests.adapters.formats.factories import deltas, write_peft
from tests.factories import TARGETS, load, logits, model
from tests.run_cli import osrm

CONFIGS = {
    "LoHa": lambda family, **more: LoHaConfig(r=2, alpha=3, target_modules=TARGETS[family], **more),
    "LoKr": lambda family, **more: LoKrConfig(r=2, alpha=3, target_modules=TARGETS[family], **more),
    "LoKr-both": lambda family, **more: LoKrConfig(r=1, decompose_both=True, target_modules=TARGETS[family], **more),
    "LoKr-factor": lambda family, **more: LoKrConfig(r=2, decompose_factor=2, target_modules=TARGETS[family], **more),
    "DoRA": lambda family, **more: LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=TARGETS[family], **more),
}


def save_kind(folder, kind, family="bert", seed=1, **settings):
    """A PEFT model of a kind with random tensors, and its folder."""
    base = folder.parent / f"base-{family}"
    if not base.exists():
        model(family).save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIGS[kind](family, task_type="SEQ_CLS", **settings)
        config.base_model_name_or_path = str(base)
        peft_model = get_peft_model(model(family), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if any(part in name for part in ("hada_", "lokr_", "lora_", "modules_to_save")):
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.data = parameter.data + noise if "magnitude" in name else noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model.eval().save_pretrained(str(folder))
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(base)}))
    return peft_model


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_computes_the_same(tmp_path, kind):
    original = save_kind(tmp_path / "a", kind)
    result = convert_adapter(tmp_path / "a", tmp_path / "plain")
    assert (result.source_kind, result.kept_energy) == (kind.partition("-")[0], 1.0)
    torch.testing.assert_close(logits(load(tmp_path / "plain")), logits(original), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_dora_of_every_family(tmp_path, family):
    settings = {"fan_in_fan_out": True} if family == "gpt2" else {}
    settings |= {"modules_to_save": ["classification_head"]} if family == "t5" else {}
    original = save_kind(tmp_path / "a", "DoRA", family, **settings)
    convert_adapter(tmp_path / "a", tmp_path / "plain")
    torch.testing.assert_close(logits(load(tmp_path / "plain", family)), logits(original), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_a_cut_is_as_good_as_peft_s_own_conversion(tmp_path, kind):
    original = save_kind(tmp_path / "a", kind)
    _, theirs = convert_to_lora(original, rank=3)
    result = convert_adapter(tmp_path / "a", tmp_path / "plain", rank=3)
    assert result.ranks == (3, 3)
    assert result.kept_energy < 1
    ours = open_adapter(tmp_path / "plain")
    for layer in ours.layers:
        name = f"base_model.model.{layer}.lora_"
        expected = theirs[f"{name}B.weight"] @ theirs[f"{name}A.weight"]
        torch.testing.assert_close(ours.delta(layer).dense(), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_of_loha_and_lokr(tmp_path):
    torch.manual_seed(0)
    for kind, config in {
        "loha": LoHaConfig(r=2, alpha=3, target_modules=["0"], use_effective_conv2d=True),
        "lokr": LoKrConfig(r=2, alpha=3, target_modules=["0"], use_effective_conv2d=True, decompose_factor=2),
        "lokr-whole": LoKrConfig(r=9, alpha=3, target_modules=["0"]),
    }.items():
        net = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, padding=1))
        peft_model = get_peft_model(net, config)
        for name, parameter in peft_model.named_parameters():
            if "hada_" in name or "lokr_" in name:
                parameter.data = torch.randn(parameter.shape) * 0.3
        peft_model.eval().save_pretrained(str(tmp_path / kind))
        convert_adapter(tmp_path / kind, tmp_path / f"{kind}-plain")
        adapter = open_adapter(tmp_path / f"{kind}-plain")
        expected = peft_model.base_model.model.get_submodule("0").get_delta_weight("default")
        assert adapter.layers["0"].kernel == (3, 3)
        torch.testing.assert_close(adapter.delta("0").dense(), expected.detach().flatten(1), rtol=1e-5, atol=1e-6)
        plain = PeftModel.from_pretrained(torch.nn.Sequential(net[0].get_base_layer()), str(tmp_path / f"{kind}-plain"))
        pictures = torch.randn(2, 4, 5, 5)
        torch.testing.assert_close(plain.eval()(pictures), peft_model(pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_a_kind_goes_through_a_merge(tmp_path, kind, method):
    for name, seed in {"a": 1, "b": 2}.items():
        save_kind(tmp_path / name, kind, seed=seed)
        with pytest.raises(OsrmError, match=r"expected LORA|use_dora is set") as found:
            open_adapter(tmp_path / name)
        assert "osrm convert" in str(found.value.hint)
        convert_adapter(tmp_path / name, tmp_path / f"plain-{name}")
    merge_adapters([tmp_path / "plain-a", tmp_path / "plain-b"], method, out=tmp_path / "merged")
    assert deltas(open_adapter(tmp_path / "merged")).keys() == deltas(open_adapter(tmp_path / "plain-a")).keys()


def test_plain_lora_can_be_cut_too(tmp_path):
    ours = write_peft(tmp_path / "a", lora_alpha=6)
    result = convert_adapter(tmp_path / "a", tmp_path / "b.safetensors", "kohya", rank=1)
    assert result.ranks == (1, 1)
    cut = open_adapter(tmp_path / "b.safetensors")
    assert cut.layers.keys() == ours.layers.keys()
    for layer, delta in deltas(ours).items():
        sigma = torch.linalg.svdvals(delta)
        assert torch.dist(deltas(cut)[layer], delta) == pytest.approx(float(sigma[1:].norm()), rel=1e-5)
    everything = convert_adapter(tmp_path / "a", tmp_path / "c", energy=1.0)
    assert everything.kept_energy == pytest.approx(1)
    torch.testing.assert_close(deltas(open_adapter(tmp_path / "c")), deltas(ours), rtol=1e-5, atol=1e-6)


def test_dora_needs_its_base_model(tmp_path):
    save_kind(tmp_path / "a", "DoRA")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    run = osrm("convert", "a", "b", cwd=tmp_path)
    assert "does not name its base model" in run.error
    assert "--model" in run.stderr
    assert osrm("convert", "a", "b", "--model", "base-bert", cwd=tmp_path).code == 0
    run = osrm("convert", "a", "c", "--model", "nothing", cwd=tmp_path)
    assert run.code == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [("LoHa", "hada_w2_b", "hada_w2_b is missing"), ("LoKr", "lokr_w1", "lokr_w1_a is missing")],
)
def test_a_missing_tensor_is_named(tmp_path, kind, suffix, message):
    save_kind(tmp_path / "a", kind)
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(suffix))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(OsrmError, match=message):
        convert_adapter(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
