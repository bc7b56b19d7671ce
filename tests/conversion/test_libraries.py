"""Converted files in diffusers' own hands: what it computes with them is what the merged weights compute."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel

from osrm_cli.adapters.formats.components import split_component
from osrm_cli.adapters.formats.flat_names import flatten_layer_name, unflatten_layer_name
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.merging.merge import merge_adapters
from tests.adapters.formats.factories import write_peft

diffusers = pytest.importorskip("diffusers", reason="the extra 'formats' is not installed")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will deprecate

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")


def tiny_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def tiny_text_encoder():
    torch.manual_seed(1)
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()


@pytest.fixture
def pipeline():
    """Stable Diffusion with tiny weights; what turns pictures and text into numbers is not needed."""
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=tiny_text_encoder(),
        tokenizer=None,
        unet=tiny_unet(),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def shapes(model, endings, prefix=""):
    """Shapes of the weights of a model's layers whose names end so, by name."""
    return {
        prefix + name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and name.endswith(endings)
    }


def noise(unet):
    """The UNet's output on fixed inputs."""
    generator = torch.Generator().manual_seed(2)
    pictures, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 16)))
    with torch.no_grad():
        return unet(pictures, torch.tensor([3, 700]), text).sample


def states(text_encoder):
    """The text encoder's output on fixed tokens."""
    with torch.no_grad():
        return text_encoder(torch.tensor([[1, 5, 9, 2], [1, 7, 3, 2]])).last_hidden_state


def merged(model, adapter, component=None):
    """A copy of a model with an adapter's updates added to its weights."""
    model = copy.deepcopy(model)
    for layer in adapter.layers:
        own, name = split_component(layer)
        if own == component:
            weight = model.get_submodule(name).weight
            weight.data += adapter.delta(layer).dense().reshape(weight.shape)
    return model


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("settings", [{"lora_alpha": 2}, {"lora_alpha": 3}, {"lora_alpha": 1, "use_rslora": True}])
def test_a_pipeline_computes_with_a_unet_s_file_what_its_updates_say(tmp_path, pipeline, format, settings):
    layers = shapes(pipeline.unet, ATTENTION + CONVOLUTIONS)
    ranks = {name: 3 for name in layers if name.endswith("conv1")}
    adapter = write_peft(tmp_path / "a", layers, ranks, **settings, size=0.2)
    expected = noise(merged(pipeline.unet, adapter))
    assert not torch.allclose(expected, noise(pipeline.unet), atol=1e-2)
    convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", format)
    pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    torch.testing.assert_close(noise(pipeline.unet), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_pipeline_computes_with_both_components(tmp_path, pipeline, format):
    text = shapes(pipeline.text_encoder, ("q_proj", "v_proj", "out_proj", "fc1", "fc2"), "text_encoder.")
    layers = shapes(pipeline.unet, ATTENTION, "unet.") | text
    adapter = write_peft(tmp_path / "a", layers, lora_alpha=4, size=0.2)
    wanted = noise(merged(pipeline.unet, adapter, "unet"))
    wanted_text = states(merged(pipeline.text_encoder, adapter, "text_encoder"))
    convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", format)
    pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    torch.testing.assert_close(noise(pipeline.unet), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states(pipeline.text_encoder), wanted_text, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_merged_files_are_the_merged_updates(tmp_path, pipeline, format, method):
    layers = shapes(pipeline.unet, ATTENTION + CONVOLUTIONS)
    for name, seed in {"a": 1, "b": 2}.items():
        write_peft(tmp_path / name, layers, seed=seed, size=0.2)
        convert_adapter(tmp_path / name, tmp_path / f"{name}.safetensors", format)
    merge_adapters([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], method, out=tmp_path / "merged")
    convert_adapter(tmp_path / "merged", tmp_path / "out.safetensors", format)
    expected = noise(merged(pipeline.unet, open_adapter(tmp_path / "merged")))
    pipeline.load_lora_weights(str(tmp_path), weight_name="out.safetensors")
    torch.testing.assert_close(noise(pipeline.unet), expected, rtol=1e-5, atol=1e-5)


def test_what_diffusers_has_saved_is_read(tmp_path, pipeline):
    from peft import LoraConfig, get_peft_model_state_dict

    config = LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "conv1"], rank_pattern={"conv1": 2})
    pipeline.unet.add_adapter(config)
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    state = get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict()
    )
    adapter = open_adapter(tmp_path)
    assert {layer.scaling for layer in adapter.layers.values()} == {7 / 3, 7 / 2}
    torch.testing.assert_close(noise(pipeline.unet), noise(merged(tiny_unet(), adapter)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_peft_loads_what_comes_back(tmp_path, format):
    unet = tiny_unet()
    adapter = write_peft(tmp_path / "a", shapes(unet, ATTENTION + CONVOLUTIONS), lora_alpha=3, size=0.2)
    convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", format)
    convert_adapter(tmp_path / "a.safetensors", tmp_path / "b")
    expected = noise(merged(unet, adapter))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(unet, str(tmp_path / "b")).eval()
    torch.testing.assert_close(noise(loaded), expected, rtol=1e-5, atol=1e-5)


def test_every_layer_of_known_models_keeps_its_name_in_kohya_s_files():
    xl = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    flux = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    sd3 = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
    )
    t5 = transformers.T5EncoderModel(transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    for model in (tiny_unet(), xl, flux, sd3, t5, tiny_text_encoder()):
        names = list(shapes(model, ""))
        assert len(names) > 10
        for name in names:
            assert unflatten_layer_name(flatten_layer_name(name)) == name


def tiny_llama(folder):
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_mlx_lm_computes_what_the_merged_updates_say(tmp_path, method):
    mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
    utils = pytest.importorskip("mlx_lm.utils", reason="MLX LM is not installed")
    base = transformers.LlamaForCausalLM.from_pretrained(tiny_llama(tmp_path / "base")).eval()
    layers = shapes(base, ("q_proj", "o_proj", "down_proj"))
    for name, seed in {"a": 1, "b": 2}.items():
        write_peft(tmp_path / name, layers, seed=seed, size=0.2)
        convert_adapter(tmp_path / name, tmp_path / f"{name}-mlx", "mlx")
    merge_adapters([tmp_path / "a-mlx", tmp_path / "b-mlx"], method, out=tmp_path / "merged")
    convert_adapter(tmp_path / "merged", tmp_path / "out", "mlx")
    model = utils.load_adapters(utils.load_model(tmp_path / "base")[0], str(tmp_path / "out"))
    tokens = [[1, 5, 9, 2], [1, 7, 3, 2]]
    with torch.no_grad():
        plain = base(torch.tensor(tokens)).logits
        expected = merged(base, open_adapter(tmp_path / "merged"))(torch.tensor(tokens)).logits
    found = torch.tensor(model(mx.array(tokens)).astype(mx.float32).tolist())
    assert (plain - expected).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
