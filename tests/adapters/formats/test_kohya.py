"""kohya's files: names with underscores, alphas, convolutions, and what is refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from tests.adapters.formats.factories import CONV, OUT, QUERY, pair, write_file, write_peft

DOWN, UP = "lora_down.weight", "lora_up.weight"
FLAT = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"


def kohya(flat=FLAT, shape=(6, 4), alpha=None, **options):
    tensors = pair((f"{flat}.{DOWN}", f"{flat}.{UP}"), shape, **options)
    return tensors | ({f"{flat}.alpha": torch.tensor(alpha)} if alpha is not None else {})


def test_the_update_is_alpha_over_rank_times_up_times_down(tmp_path):
    tensors = kohya(alpha=0.5, rank=3)
    adapter = open_adapter(write_file(tmp_path / "style.safetensors", tensors))
    assert adapter.name == "style"
    assert adapter.format == "kohya"
    assert list(adapter.layers) == [QUERY]
    expected = 0.5 / 3 * tensors[f"{FLAT}.{UP}"] @ tensors[f"{FLAT}.{DOWN}"]
    torch.testing.assert_close(adapter.delta(QUERY).dense(), expected)


def test_without_alpha_the_scaling_is_one(tmp_path):
    adapter = open_adapter(write_file(tmp_path / "style.safetensors", kohya()))
    assert adapter.layers[QUERY].scaling == 1


def test_a_convolution_is_the_matrix_over_its_patches(tmp_path):
    flat = "lora_unet_up_blocks_1_resnets_0_conv1"
    tensors = kohya(flat, (5, 3, 3, 3), alpha=2.0)
    adapter = open_adapter(write_file(tmp_path / "style.safetensors", tensors))
    layer = adapter.layers[CONV]
    assert (layer.d_out, layer.d_in, layer.kernel, layer.weight_shape) == (5, 27, (3, 3), (5, 3, 3, 3))
    pictures, conv = torch.randn(2, 3, 8, 8), torch.nn.functional.conv2d
    expected = conv(conv(pictures, tensors[f"{flat}.{DOWN}"], padding=1), tensors[f"{flat}.{UP}"])
    weight = adapter.delta(CONV).dense().reshape(layer.weight_shape)
    torch.testing.assert_close(conv(pictures, weight, padding=1), expected)


def test_components_are_kept_apart(tmp_path):
    text = "text_model.encoder.layers.3.self_attn.q_proj"
    tensors = kohya() | kohya(TEXT) | kohya(TEXT.replace("lora_te_", "lora_te2_"))
    adapter = open_adapter(write_file(tmp_path / "style.safetensors", tensors))
    assert set(adapter.layers) == {f"unet.{QUERY}", f"text_encoder.{text}", f"text_encoder_2.{text}"}
    # Nothing but the prefix tells the second text encoder from the first.
    lone = open_adapter(write_file(tmp_path / "lone.safetensors", kohya(TEXT.replace("lora_te_", "lora_te2_"))))
    assert set(lone.layers) == {f"text_encoder_2.{text}"}
    first = open_adapter(write_file(tmp_path / "first.safetensors", kohya(TEXT.replace("lora_te_", "lora_te1_"))))
    assert set(first.layers) == {text}


@pytest.mark.parametrize(
    ("authors", "diffusers"),
    [
        (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_k",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        ),
        ("input_blocks_8_0_in_layers_2", "down_blocks.2.resnets.1.conv1"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj"),
        ("output_blocks_5_1_proj_out", "up_blocks.1.attentions.2.proj_out"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_3_0_skip_connection", "up_blocks.1.resnets.0.conv_shortcut"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("out_2", "conv_out"),
    ],
)
def test_stability_ai_s_names_become_diffusers(tmp_path, authors, diffusers):
    adapter = open_adapter(write_file(tmp_path / "xl.safetensors", kohya(f"lora_unet_{authors}")))
    assert list(adapter.layers) == [diffusers]


def test_ranks_and_alphas_may_differ_from_layer_to_layer(tmp_path):
    other = FLAT.replace("to_q", "to_k")
    tensors = kohya(alpha=1.0, rank=3) | kohya(other, alpha=8.0, rank=4)
    adapter = open_adapter(write_file(tmp_path / "style.safetensors", tensors))
    assert {layer.rank: layer.scaling for layer in adapter.layers.values()} == {3: 1 / 3, 4: 2}
    convert_adapter(tmp_path / "style.safetensors", tmp_path / "style")
    assert {layer.rank: layer.scaling for layer in open_adapter(tmp_path / "style").layers.values()} == {3: 1 / 3, 4: 2}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{FLAT}.dora_scale": torch.ones(6, 1)}, "dora_scale is DoRA"),
        ({f"{FLAT}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "a third factor"),
        ({f"{FLAT}x.hada_w1_a": torch.ones(6, 2)}, "LoHa"),
        ({f"{FLAT}x.diff": torch.ones(6, 4)}, "a difference of whole weights"),
        ({f"{FLAT}.alpha": torch.ones(2)}, r"alpha has shape \(2,\)"),
        ({f"{FLAT}.alpha": torch.tensor(torch.nan)}, "alpha is nan, expected a finite number"),
        ({f"{FLAT.replace('to_q', 'to_k')}.{UP}": torch.ones(6, 2)}, "lora_down.weight is missing"),
        (kohya("lora_unet_down_blocks_0_strange_proj"), "not the name of a layer that is known"),
        (kohya("lora_unet_middle_block_1_proj_in") | kohya("lora_unet_mid_block_attentions_0_proj_in"), "are both"),
        (kohya("lora_unet_down_blocks_0_resnets_0_conv1", (6, 4, 3)) | {
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.ones(6, 2)}, "expected"),
    ],
)  # fmt: skip
def test_what_is_not_two_factors_is_refused(tmp_path, tensors, message):
    path = write_file(tmp_path / "style.safetensors", kohya() | tensors)
    with pytest.raises(OsrmError, match=message):
        open_adapter(path)


def test_names_that_would_not_come_back_are_refused(tmp_path):
    write_peft(tmp_path / "a", {"down_blocks.0.strange_proj": (6, 4)})
    with pytest.raises(OsrmError, match="cannot name a layer") as found:
        convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", "kohya")
    assert "diffusers" in str(found.value.hint)
    assert not (tmp_path / "a.safetensors").exists()


def test_rslora_becomes_an_alpha(tmp_path):
    adapter = write_peft(tmp_path / "a", ranks={QUERY: 3, OUT: 5}, lora_alpha=4, use_rslora=True)
    convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", "kohya")
    back = open_adapter(tmp_path / "a.safetensors")
    for layer in adapter.layers:
        assert back.layers[layer].scaling == pytest.approx(4 / back.layers[layer].rank ** 0.5, rel=1e-15)
    stored = load_file(tmp_path / "a.safetensors")
    kinds = {name: tensor.dtype for name, tensor in stored.items() if name.endswith("alpha")}
    assert set(kinds.values()) == {torch.float64}  # 4 * sqrt(r) is not a number of float32


def test_the_header_s_facts_go_on_but_for_digests_and_private_ones(tmp_path):
    facts = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.title": "Style", "ss_network_alpha": "7"}
    private = {"ss_dataset_dirs": "{}", "ss_tag_frequency": "{}", "sshs_model_hash": "00", "modelspec.hash_sha256": "0"}
    path = write_file(tmp_path / "style.safetensors", kohya(alpha=1.0), **facts, **private)
    result = convert_adapter(path, tmp_path / "style")
    assert result.left_out == sorted(private)
    convert_adapter(tmp_path / "style", tmp_path / "back.safetensors", "kohya")
    with safe_open(tmp_path / "back.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.title"] == "Style"
    assert (metadata["ss_network_module"], metadata["ss_network_dim"]) == ("networks.lora", "2")
    assert metadata["ss_network_alpha"] == "1"
    assert not private.keys() & metadata.keys()


@pytest.mark.parametrize(
    "name",
    ["blocks.0.cross_attn.k_img", "joint_blocks.7.context_block.attn.qkv", "transformer_blocks.3.img_mlp.net.0.proj"],
)
def test_names_of_other_transformers_come_back(tmp_path, name):
    path = write_file(tmp_path / "a.safetensors", kohya("lora_unet_" + name.replace(".", "_")))
    assert list(open_adapter(path).layers) == [f"diffusion_model.{name}"]


def test_names_of_other_transformers_keep_their_layout(tmp_path):
    path = write_file(tmp_path / "wan.safetensors", kohya("lora_unet_blocks_0_self_attn_q"))
    convert_adapter(path, tmp_path / "wan")
    convert_adapter(tmp_path / "wan", tmp_path / "back.safetensors", "kohya")
    assert "lora_unet_blocks_0_self_attn_q.lora_up.weight" in load_file(tmp_path / "back.safetensors")
    with pytest.raises(OsrmError, match="its authors' layout"):
        convert_adapter(path, tmp_path / "back2.safetensors", "diffusers")


def test_text_encoders_are_numbered_where_there_are_several(tmp_path):
    names = ["text_model.encoder.layers.3.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1"]
    write_peft(tmp_path / "one", {f"text_encoder.{names[0]}": (6, 4), f"unet.{QUERY}": (6, 4)})
    write_peft(tmp_path / "two", {f"text_encoder.{names[0]}": (6, 4), f"text_encoder_2.{names[1]}": (6, 4)})
    for name, prefixes in {"one": {"lora_te", "lora_unet"}, "two": {"lora_te1", "lora_te2"}}.items():
        convert_adapter(tmp_path / name, tmp_path / f"{name}.safetensors", "kohya")
        stored = load_file(tmp_path / f"{name}.safetensors")
        assert {"_".join(each.split("_")[:2]) for each in stored} == prefixes
        back, ours = (open_adapter(tmp_path / each).layers.keys() for each in (f"{name}.safetensors", name))
        assert back == ours
