"""diffusers' files, and all others with dotted names."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from tests.adapters.formats.factories import CONV, OUT, QUERY, deltas, pair, write_file, write_peft

TEXT = "text_model.encoder.layers.3.self_attn.q_proj"
PEFT = (f"unet.{QUERY}.lora_A.weight", f"unet.{QUERY}.lora_B.weight")
OLD = QUERY.replace("attn1", "attn1.processor")


OLD_OUT = OUT.replace("attn2.to_out.0", "attn2.processor.to_out_lora")
OLD_TEXT = TEXT.replace("q_proj", "to_q_lora")
FLUX, WAN = "single_blocks.7.linear1", "blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("name", "style", "layer"),
    [
        (f"unet.{QUERY}", (".lora_A.weight", ".lora_B.weight"), QUERY),
        (f"unet.{QUERY}", (".lora_A.default.weight", ".lora_B.default.weight"), QUERY),
        (f"unet.{QUERY}", (".lora.down.weight", ".lora.up.weight"), QUERY),
        (f"unet.{OLD}_lora", (".down.weight", ".up.weight"), QUERY),
        (f"{OLD}_lora", (".down.weight", ".up.weight"), QUERY),
        (OLD_OUT, (".down.weight", ".up.weight"), OUT),
        (f"text_encoder.{TEXT}", (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), TEXT),
        (f"text_encoder.{OLD_TEXT}", (".down.weight", ".up.weight"), TEXT),
        (f"diffusion_model.{FLUX}", (".lora_down.weight", ".lora_up.weight"), FLUX),
        (f"diffusion_model.{WAN}", (".lora_A.weight", ".lora_B.weight"), f"diffusion_model.{WAN}"),
    ],
)
def test_every_way_of_naming_a_factor_is_read(tmp_path, name, style, layer):
    names = (name + style[0], name + style[1])
    tensors = pair(names, (6, 4))
    adapter = open_adapter(write_file(tmp_path / "style.safetensors", tensors))
    assert adapter.format == "diffusers"
    assert list(adapter.layers) == [layer]
    torch.testing.assert_close(adapter.delta(layer).dense(), tensors[names[1]] @ tensors[names[0]])


def test_a_folder_with_the_usual_file_is_one_adapter(tmp_path):
    (tmp_path / "style").mkdir()
    write_file(tmp_path / "style" / "pytorch_lora_weights.safetensors", pair(PEFT, (6, 4)))
    assert open_adapter(tmp_path / "style").name == "style"


def test_alphas_beside_the_factors_count(tmp_path):
    tensors = pair(PEFT, (6, 4)) | {f"unet.{QUERY}.alpha": torch.tensor(6.0)}
    assert open_adapter(write_file(tmp_path / "a.safetensors", tensors)).layers[QUERY].scaling == 3


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_settings_in_the_header_count(tmp_path, prefix):
    settings = {"r": 2, "lora_alpha": 8, "rank_pattern": {"to_k": 3}, "alpha_pattern": {"to_k": 6}, "use_dora": False}
    header = {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in settings.items()})}
    tensors = pair(PEFT, (6, 4)) | pair(tuple(name.replace("to_q", "to_k") for name in PEFT), (6, 4), rank=3)
    adapter = open_adapter(write_file(tmp_path / "a.safetensors", tensors, **header))
    assert [layer.scaling for layer in adapter.layers.values()] == [2, 4]


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({f"unet.{QUERY}.lora_magnitude_vector": torch.ones(6)}, None, "neither a factor of LoRA nor its alpha"),
        ({f"unet.{QUERY}.lora_B.bias": torch.ones(6)}, None, "neither a factor"),
        ({f"unet.{OUT}.lora_A.weight": torch.ones(2, 6)}, None, "has no lora_B"),
        ({f"unet.{OUT}.alpha": torch.tensor(1.0)}, None, "has an alpha and no factors"),
        ({f"unet.{QUERY}.alpha": torch.tensor(-torch.inf)}, None, "alpha is -inf, expected a finite number"),
        ({f"unet.{QUERY}.lora.down.weight": torch.ones(2, 4)}, None, "twice"),
        ({}, {"unet.r": 2, "unet.use_dora": True}, "use_dora is set"),
        ({}, {"unet.r": 3}, "has rank 2, its settings say 3"),
        ({}, "{", "cannot be read"),
    ],
)
def test_what_is_not_two_factors_is_refused(tmp_path, tensors, header, message):
    text = header if isinstance(header, str) else json.dumps(header)
    path = tmp_path / "a.safetensors"
    write_file(path, pair(PEFT, (6, 4)) | tensors, **({"lora_adapter_metadata": text} if header else {}))
    with pytest.raises(OsrmError, match=message):
        open_adapter(path)


def test_peft_s_own_file_needs_its_folder(tmp_path):
    write_peft(tmp_path / "a")
    with pytest.raises(OsrmError, match="not a LoRA file of diffusers or kohya") as found:
        open_adapter(tmp_path / "a" / "adapter_model.safetensors")
    assert "folder" in str(found.value.hint)


def test_the_scaling_is_folded_into_b(tmp_path):
    adapter = write_peft(tmp_path / "a", ranks={CONV: 3}, lora_alpha=5)
    convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", "diffusers")
    stored = load_file(tmp_path / "a.safetensors")
    for layer, delta in deltas(adapter).items():
        A, B = (stored[f"unet.{layer}.lora_{letter}.weight"] for letter in "AB")
        torch.testing.assert_close((B.flatten(1) @ A.flatten(1)).double(), delta, rtol=1e-6, atol=1e-6)
    assert stored[f"unet.{CONV}.lora_A.weight"].shape == (3, 3, 3, 3)
    assert stored[f"unet.{CONV}.lora_B.weight"].shape == (5, 3, 1, 1)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (2, 2)
    back = open_adapter(tmp_path / "a.safetensors")
    assert {layer.scaling for layer in back.layers.values()} == {1.0}


def test_half_precision_is_not_rounded_unless_asked(tmp_path):
    write_peft(tmp_path / "a", dtype=torch.float16, lora_alpha=3)
    with pytest.raises(OsrmError, match=r"scaling 1\.5 cannot be folded into float16") as found:
        convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", "diffusers")
    assert "--dtype float32" in str(found.value.hint)
    assert not (tmp_path / "a.safetensors").exists()
    convert_adapter(tmp_path / "a", tmp_path / "wide.safetensors", "diffusers", dtype="float32")
    convert_adapter(tmp_path / "a", tmp_path / "half.safetensors", "diffusers", dtype="float16")
    ours, wide, half = (deltas(open_adapter(tmp_path / name)) for name in ("a", "wide.safetensors", "half.safetensors"))
    torch.testing.assert_close(wide, ours, rtol=0, atol=0)
    torch.testing.assert_close(half, ours, rtol=1e-2, atol=1e-2)
    write_peft(tmp_path / "b", dtype=torch.float16, lora_alpha=8)  # a power of two: exact
    convert_adapter(tmp_path / "b", tmp_path / "b.safetensors", "diffusers")
    torch.testing.assert_close(
        deltas(open_adapter(tmp_path / "b.safetensors")), deltas(open_adapter(tmp_path / "b")), rtol=0, atol=0
    )
